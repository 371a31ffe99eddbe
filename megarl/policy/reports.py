"""What a policy rank returns. Imports no Megatron, so that whoever unpickles a report does not either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megarl.objective.loop_numbers import LoopChoice
from megarl.objective.token_sums import TokenSums
from megarl.parallel.batches import BatchShard, PackedSamples, split_by_sample
from megarl.records import Floats, TokenScores, TokenTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """One optimizer update, as its replica saw it; `sums` of the replicas add up."""

    sums: TokenSums
    grad_norm: float
    lr: float
    traces: tuple[TokenTrace, ...] = ()
    """What the update did with the tokens of the samples that were asked for."""
    loop: LoopChoice | None = None
    """What a closed-loop clip chose for the update; the same on all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredMicroBatch:
    """A held micro-batch's response tokens before the step's first update, in its order."""

    old_logp_R: Tensor
    old_entropy_R: Tensor
    ref_logp_R: Tensor | None
    expected_q_R: Tensor | None
    """Where a rule chooses tokens by it; None where none does."""

    def report(self) -> "MicroBatchScores":
        """What the driver is told."""
        return MicroBatchScores(
            old_logp_R=self.old_logp_R.cpu().numpy(),
            old_entropy_R=self.old_entropy_R.cpu().numpy(),
            ref_logp_R=None if self.ref_logp_R is None else self.ref_logp_R.cpu().numpy(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchScores:
    """A micro-batch's scores as they cross process borders, in its order."""

    old_logp_R: Floats
    old_entropy_R: Floats
    ref_logp_R: Floats | None


def scores_by_sample(shard: BatchShard, scored: Sequence[Sequence[MicroBatchScores]]) -> Iterator[TokenScores]:
    """What a replica's reporter said of its shard, sample by sample in the order packed."""
    for mini, scored_mini in zip(shard, scored, strict=True):
        for batch, values in zip(mini, scored_mini, strict=True):
            yield from _by_sample(batch, values)


def _by_sample(batch: PackedSamples, values: MicroBatchScores) -> Iterator[TokenScores]:
    old = split_by_sample(values.old_logp_R, batch)
    entropy = split_by_sample(values.old_entropy_R, batch)
    ref = [None] * len(old) if values.ref_logp_R is None else split_by_sample(values.ref_logp_R, batch)
    for sample_id, old_R, entropy_R, ref_R in zip(batch.sample_ids, old, entropy, ref, strict=True):
        yield TokenScores(
            sample_id=sample_id,
            old_logp=old_R,
            old_entropy=entropy_R,
            ref_logp=ref_R,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """Of a rank's GPU, after the rank has given back what it does not need while engines sample."""

    used: int
    """Bytes that are taken, by whatever process."""
    reserved: int
    """Bytes that this rank's allocator holds of them."""


class NonFiniteLossError(RuntimeError):
    """The loss of a micro-batch is NaN or infinite; the message names its samples."""
