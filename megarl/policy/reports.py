"""What a policy rank returns. Imports no Megatron, so that whoever unpickles a report does not either."""

from dataclasses import dataclass

from torch import Tensor

from megarl.objective.statistics import TokenSums


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """One optimizer update, as its replica saw it; `sums` of the replicas add up."""

    sums: TokenSums
    grad_norm: float
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredMicroBatch:
    """Log-probs of a held micro-batch, in its order."""

    old_logp_R: Tensor
    ref_logp_R: Tensor | None


class NonFiniteLossError(RuntimeError):
    """The loss of a micro-batch is NaN or infinite; the message names its samples."""
