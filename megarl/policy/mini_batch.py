"""The objective on one mini-batch: survey where a rule asks for it, choose, differentiate.

T = response tokens of a rank's whole share of the mini-batch. Only last-stage ranks hold tokens; every method is called
on every rank, because the passes are pipelined.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.choices import choose, needs_choices
from megarl.objective.contexts import RESOLUTION
from megarl.objective.loss import compute_token_loss
from megarl.objective.tokens import Choices, Controls, TokenBatch, TokenLoss
from megarl.parallel.batches import MiniBatch, PackedMicroBatch, PackedSamples
from megarl.parallel.vocab import TokenDistribution
from megarl.policy.model import Chunks
from megarl.policy.passes import Passes
from megarl.policy.reports import ScoredMicroBatch
from megarl.policy.token_batches import DataParallelReduce, make_token_batch

TokenParts = list[tuple[TokenBatch, TokenLoss]]
"""Detached tokens and loss of every micro-batch; [] where this rank is no last stage."""


class ObjectivePasses:
    """Passes over mini-batches with the configured objective."""

    def __init__(self, objective: ObjectiveConfig, passes: Passes, *, device: torch.device, temperature: float) -> None:
        self._objective, self._passes, self._device, self._temperature = objective, passes, device, temperature

    def score(
        self, model: Chunks, reference: Chunks | None, batches: Sequence[PackedSamples]
    ) -> list[ScoredMicroBatch]:
        """Log-probs and entropies under the model, and log-probs under the reference if given; [] on inner stages."""
        old = self._look(model, batches, with_expected_q=self._objective.needs_survey)
        ref = [None] * len(old) if reference is None else [token.logp_T for token in self._look(reference, batches)]
        return [
            ScoredMicroBatch(
                old_logp_R=token.logp_T,
                old_entropy_R=token.entropy_T,
                ref_logp_R=ref_R,
                expected_q_R=token.expected_q_T,
            )
            for token, ref_R in zip(old, ref, strict=True)
        ]

    def choose(
        self,
        model: Chunks,
        batches: MiniBatch,
        scores: Sequence[ScoredMicroBatch],
        controls: Controls,
        *,
        first: bool,
    ) -> list[Choices]:
        """What the whole mini-batch decides of its tokens, by micro-batch; [] on inner stages.

        `first`: no update has happened since `score`, so its results are the survey.
        """
        if not needs_choices(self._objective):
            return [Choices.none(scored.old_logp_R) for scored in scores]
        surveyed: Sequence[TokenDistribution]
        if self._objective.needs_survey and not first:
            surveyed = self._look(model, batches, with_expected_q=True)
        else:
            # Without a survey nothing reads these columns: the choices left depend on scores and rollouts only.
            surveyed = [
                TokenDistribution(
                    s.old_logp_R,
                    s.old_entropy_R,
                    torch.zeros_like(s.old_logp_R) if s.expected_q_R is None else s.expected_q_R,
                )
                for s in scores
            ]
        if not surveyed:
            return []
        parts = [
            make_token_batch(batch.to(self._device), scored, token)
            for batch, scored, token in zip(batches, scores, surveyed, strict=True)
        ]
        chosen = choose(self._objective, TokenBatch.concatenate(parts), controls, data_parallel_reduce())
        return chosen.split([part.logp_T.shape[0] for part in parts])

    def differentiate(
        self,
        ddp: Sequence[DistributedDataParallel],
        batches: MiniBatch,
        scores: Sequence[ScoredMicroBatch],
        choices: Sequence[Choices],
        controls: Controls,
        *,
        first: bool,
    ) -> TokenParts:
        """Forward and backward of the mini-batch's loss; gradients are complete afterwards.

        `first`: no update has happened since `score`, so the policy is the old one and its ratio is 1.
        """

        def loss(at: int, batch: PackedMicroBatch, token: TokenDistribution) -> tuple[Tensor, object]:
            scored = _without_rounding(scores[at], token) if first else scores[at]
            return self._loss(make_token_batch(batch, scored, token), choices[at], controls)

        return self._passes.run(ddp, batches, loss, temperature=self._temperature, backward=True, with_expected_q=True)

    def score_and_differentiate(
        self,
        ddp: Sequence[DistributedDataParallel],
        reference: Chunks | None,
        batches: MiniBatch,
        controls: Controls,
    ) -> tuple[TokenParts, list[ScoredMicroBatch]]:
        """`score` and `differentiate` of a step's only update by one forward: the policy is the old one, so its numbers
        are the old ones. For objectives that choose nothing by them. ([], []) on inner stages."""
        referred = [] if reference is None else self._look(reference, batches)

        def loss(at: int, batch: PackedMicroBatch, token: TokenDistribution) -> tuple[Tensor, object]:
            scored = _scores_of(token, ref_logp_R=referred[at].logp_T if referred else None)
            return self._loss(make_token_batch(batch, scored, token), Choices.none(scored.old_logp_R), controls)

        parts: TokenParts = self._passes.run(
            ddp, batches, loss, temperature=self._temperature, backward=True, with_expected_q=True
        )
        scores = [
            ScoredMicroBatch(
                old_logp_R=tokens.old_logp_T,
                old_entropy_R=tokens.old_entropy_T,
                ref_logp_R=tokens.ref_logp_T,
                expected_q_R=None,
            )
            for tokens, _ in parts
        ]
        return parts, scores

    def _loss(self, tokens: TokenBatch, choices: Choices, controls: Controls) -> tuple[Tensor, object]:
        """(what to differentiate, the micro-batch's entry of `TokenParts`)."""
        result = compute_token_loss(self._objective, controls, tokens, choices)
        return result.loss, (tokens.detach(), replace(result, loss=result.loss.detach()))

    def imitate(self, ddp: Sequence[DistributedDataParallel], batches: MiniBatch) -> TokenParts:
        """Forward and backward of supervised batches: loss = -sum of weight * logp, at temperature 1."""

        def loss(_at: int, batch: PackedMicroBatch, token: TokenDistribution) -> tuple[Tensor, object]:
            tokens = make_token_batch(batch, _scores_of(token, ref_logp_R=None), token).detach()
            counted = compute_token_loss(_PLAIN, _UNCONTROLLED, tokens, Choices.none(tokens.logp_T))
            value = -(batch.weight_R * token.logp_T).sum()
            return value, (tokens, replace(counted, loss=value.detach()))

        return self._passes.run(ddp, batches, loss, temperature=1.0, backward=True, with_expected_q=True)

    def _look(
        self, model: Chunks, batches: Sequence[PackedSamples], *, with_expected_q: bool = False
    ) -> list[TokenDistribution]:
        def keep(_at: int, _batch: PackedMicroBatch, token: TokenDistribution) -> tuple[Tensor, TokenDistribution]:
            return token.logp_T.new_zeros(()), token

        was_training = [chunk.training for chunk in model]
        for chunk in model:
            chunk.eval()
        try:
            with torch.no_grad():
                return self._passes.run(
                    model,
                    batches,
                    keep,
                    temperature=self._temperature,
                    backward=False,
                    with_expected_q=with_expected_q,
                )
        finally:
            for chunk, training in zip(model, was_training, strict=True):
                chunk.train(training)


def _scores_of(token: TokenDistribution, *, ref_logp_R: Tensor | None) -> ScoredMicroBatch:
    """The policy's own numbers as the old ones."""
    return ScoredMicroBatch(
        old_logp_R=token.logp_T.detach(),
        old_entropy_R=token.entropy_T.detach(),
        ref_logp_R=ref_logp_R,
        expected_q_R=None,
    )


def _without_rounding(scored: ScoredMicroBatch, token: TokenDistribution) -> ScoredMicroBatch:
    """The scores, with this pass's numbers where the two differ by no more than rounding.

    Two passes over the same weights may round differently, and what compares them (a bound of distance 0, the sign of
    KL-Cov's penalty, ERC's ratio) would then act on that. A larger difference is no rounding and stays to be seen.
    """
    old_logp_R, old_entropy_R = (
        torch.where((now_R - old_R).abs() <= RESOLUTION, now_R, old_R)
        for now_R, old_R in (
            (token.logp_T.detach(), scored.old_logp_R),
            (token.entropy_T.detach(), scored.old_entropy_R),
        )
    )
    return replace(scored, old_logp_R=old_logp_R, old_entropy_R=old_entropy_R)


def data_parallel_reduce() -> DataParallelReduce:
    """Over the ranks that hold the same pipeline stage and tensor shard: together they have the whole mini-batch."""
    return DataParallelReduce(parallel_state.get_data_parallel_group())


_PLAIN = ObjectiveConfig()
_UNCONTROLLED = Controls(step=1, seed=0)
"""For the statistics of supervised batches, whatever the run's objective says."""
