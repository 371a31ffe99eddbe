"""What a policy rank returns. Imports no Megatron, so that whoever unpickles a report does not either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megarl.objective.token_sums import TokenSums
from megarl.parallel.batches import BatchShard
from megarl.parallel.packing import PackedMicroBatch, split_by_sample
from megarl.records import TokenScores, TokenTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """One optimizer update, as its replica saw it; `sums` of the replicas add up."""

    sums: TokenSums
    grad_norm: float
    lr: float
    traces: tuple[TokenTrace, ...] = ()
    """What the update did with the tokens of the samples that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredMicroBatch:
    """A held micro-batch's response tokens before the step's first update, in its order."""

    old_logp_R: Tensor
    old_entropy_R: Tensor
    ref_logp_R: Tensor | None
    expected_q_R: Tensor | None
    """Where a rule chooses tokens by it; None where none does."""

    def cpu(self) -> "ScoredMicroBatch":
        return ScoredMicroBatch(
            old_logp_R=self.old_logp_R.cpu(),
            old_entropy_R=self.old_entropy_R.cpu(),
            ref_logp_R=None if self.ref_logp_R is None else self.ref_logp_R.cpu(),
            expected_q_R=None if self.expected_q_R is None else self.expected_q_R.cpu(),
        )


def scores_by_sample(shard: BatchShard, scored: Sequence[Sequence[ScoredMicroBatch]]) -> Iterator[TokenScores]:
    """What a replica's reporter said of its shard, sample by sample in the order packed."""
    for mini, scored_mini in zip(shard, scored, strict=True):
        for batch, values in zip(mini, scored_mini, strict=True):
            yield from _by_sample(batch, values)


def _by_sample(batch: PackedMicroBatch, values: ScoredMicroBatch) -> Iterator[TokenScores]:
    old = split_by_sample(values.old_logp_R, batch)
    entropy = split_by_sample(values.old_entropy_R, batch)
    ref = [None] * len(old) if values.ref_logp_R is None else split_by_sample(values.ref_logp_R, batch)
    for sample_id, old_R, entropy_R, ref_R in zip(batch.sample_ids, old, entropy, ref, strict=True):
        yield TokenScores(
            sample_id=sample_id,
            old_logp=tuple(old_R.tolist()),
            old_entropy=tuple(entropy_R.tolist()),
            ref_logp=None if ref_R is None else tuple(ref_R.tolist()),
        )


class NonFiniteLossError(RuntimeError):
    """The loss of a micro-batch is NaN or infinite; the message names its samples."""
