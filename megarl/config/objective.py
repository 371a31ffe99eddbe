"""The training objective: advantage, clipping, aggregation, KL to a reference."""

import math
from typing import Annotated, Literal

from pydantic import Field

from megarl.config.base import Config


class DrGrpo(Config):
    """A = R - mean of the group (arXiv 2503.20783; the clipping papers' choice)."""

    method: Literal["dr_grpo"] = "dr_grpo"


class Grpo(Config):
    """A = (R - mean) / (std + eps) over the group (arXiv 2402.03300); std with Bessel's correction, as verl and TRL."""

    method: Literal["grpo"]
    eps: float = Field(1e-6, ge=0)
    """Added to the standard deviation."""


Advantage = Annotated[DrGrpo | Grpo, Field(discriminator="method")]


class ClipConfig(Config):
    """PPO clipping: min(r A, clip(r, 1-low, 1+high) A)."""

    low: float = Field(0.2, ge=0, le=1)
    """Clip-low: ratios below 1-low are clipped where A < 0. 1.0 turns it off."""
    high: float = Field(0.2, ge=0)
    """Clip-high: ratios above 1+high are clipped where A > 0. inf turns it off."""
    dual: float = Field(math.inf, gt=1)
    """Dual clip: where A < 0 the loss is at most -dual * A (arXiv 1912.09729). inf turns it off."""


class AggregationConfig(Config):
    """How token losses become the loss."""

    mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = "token-mean"
    """How token losses become one number; verl's names. Normalisers are global over the mini-batch."""
    norm_length: int | None = Field(None, ge=1)
    """Constant divisor of seq-mean-token-sum-norm (Dr. GRPO); default: rollout.max_response_tokens."""


class KlConfig(Config):
    """KL to the frozen starting weights, added to the loss."""

    coefficient: float = Field(0.0, ge=0)
    """Weight of the KL to the frozen starting weights; 0 builds no reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """k1 = lp - ref, k2 = (lp - ref)^2 / 2, k3 = exp(ref - lp) - (ref - lp) - 1, on sampled tokens."""


class ObjectiveConfig(Config):
    """What the policy maximises."""

    advantage: Advantage = DrGrpo()
    clip: ClipConfig = ClipConfig()
    aggregation: AggregationConfig = AggregationConfig()
    kl: KlConfig = KlConfig()
