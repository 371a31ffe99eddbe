"""From packed micro-batches to the objective's tokens, and back to per-sample traces.

R = response tokens of a micro-batch, T = those of a rank's whole share of a mini-batch.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch.distributed as dist
from torch import Tensor

from megarl.objective.tokens import TokenBatch, TokenLoss
from megarl.parallel.batches import PackedMicroBatch
from megarl.parallel.vocab import TokenDistribution
from megarl.policy.reports import ScoredMicroBatch
from megarl.records import TokenTrace


class DataParallelReduce:
    """The objective's `Reduce` over the ranks of a process group; on one rank it only hands values through."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self._group.size() == 1:
            return values
        reduced = values.clone()
        dist.all_reduce(reduced, op=operation, group=self._group)
        return reduced


def make_token_batch(batch: PackedMicroBatch, scored: ScoredMicroBatch, distribution: TokenDistribution) -> TokenBatch:
    """A micro-batch's response tokens as the objective reads them; `batch` and `scored` are on the same device."""
    logp_R = distribution.logp_T
    if distribution.expected_q_T is None:
        raise ValueError("the objective needs expected Q of every token; run the pass with_expected_q=True")
    return TokenBatch(
        logp_T=logp_R,
        entropy_T=distribution.entropy_T,
        expected_q_T=distribution.expected_q_T,
        old_logp_T=scored.old_logp_R,
        old_entropy_T=scored.old_entropy_R,
        weight_T=batch.weight_R,
        sequence_T=batch.sequence_R,
        position_T=batch.position_R,
        sample_id_T=batch.sample_id_R,
        num_sequences=batch.num_samples,
        context_T=batch.context_R,
        outcome_T=batch.outcome_R,
        ref_logp_T=scored.ref_logp_R,
        columns_T=batch.columns_R,
    )


def make_traces(tokens: TokenBatch, loss: TokenLoss, *, ids: range) -> list[TokenTrace]:
    """What the update did with each token of the samples whose id lies in `ids`, a range of step 1."""
    chosen_T = (tokens.sample_id_T >= ids.start) & (tokens.sample_id_T < ids.stop)
    if not bool(chosen_T.any()):
        return []
    columns_T = {
        "logp": tokens.logp_T,
        "entropy": tokens.entropy_T,
        "expected_q": tokens.expected_q_T,
        "ratio": loss.ratio_T,
        "low": loss.low_T,
        "high": loss.high_T,
        "gate": loss.gate_T,
        "weight": loss.weight_T,
        "coefficient": loss.coefficient_T,
        "advantage": loss.advantage_T,
        "rule": loss.rule_T,
    }
    columns = {name: column_T[chosen_T].cpu().numpy() for name, column_T in columns_T.items()}
    sample_ids = tokens.sample_id_T[chosen_T].cpu().numpy()
    # A response's tokens are consecutive and in order, so its rows are one run of equal ids.
    edges = [0, *(np.flatnonzero(np.diff(sample_ids)) + 1).tolist(), len(sample_ids)]
    return [
        TokenTrace(
            sample_id=int(sample_ids[start]),
            **{name: values[start:stop] for name, values in columns.items()},
        )
        for start, stop in pairwise(edges)
    ]


def merge_parts(parts: Sequence[tuple[TokenBatch, TokenLoss]]) -> tuple[TokenBatch, TokenLoss]:
    """A rank's share of a mini-batch from its micro-batches."""
    return TokenBatch.concatenate([tokens for tokens, _ in parts]), TokenLoss.concatenate([loss for _, loss in parts])
