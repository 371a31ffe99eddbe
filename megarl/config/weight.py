"""Plug point 4: token weights, detached and multiplied together, and how weighted tokens become one number."""

from typing import Literal

from pydantic import Field

from megarl.config.base import Config, Unbounded


class TruncatedImportance(Config):
    """TIS: min(rho, cap), rho = exp(old_logp - behavior_logp), against the trainer-vLLM mismatch."""

    level: Literal["token", "sequence"] = "token"
    """sequence: the product over the response."""
    cap: Unbounded = Field(2.0, gt=0)
    """Largest weight (a ratio); inf is none."""
    floor: float = Field(0.0, ge=0)
    """Smallest weight; 0 is off."""
    normalise: bool = False
    """Divide by the mean weight over all response tokens of the mini-batch."""


class MaskedImportance(Config):
    """MIS: rho where low <= rho <= high, else 0 (IcePop: tokens, 0.5 and 5)."""

    level: Literal["token", "sequence", "geometric"] = "token"
    """sequence: the product over the response. geometric: its geometric mean."""
    low: float = Field(0.5, ge=0)
    """Smallest ratio kept."""
    high: Unbounded = Field(5.0, gt=0)
    """Largest ratio kept; inf is no bound."""


class SequenceRejection(Config):
    """Keeps a response where a mean over its tokens of the trainer-vLLM log ratio lies inside bounds."""

    statistic: Literal["k1", "k2", "k3"] = "k1"
    """k1: exp(mean log rho) in [low, high] (the geometric mean). k2: mean (log rho)^2 / 2 <= high.
    k3: mean (rho - 1 - log rho) <= high."""
    low: float = Field(0.999, ge=0)
    """Lower bound of the geometric mean; k2 and k3 have none."""
    high: Unbounded = Field(1.001, gt=0)
    """Upper bound; inf is none."""


class OffPolicySequenceMask(Config):
    """OPSM (DeepSeek-V3.2): drops a response where A < 0 and mean log(old / current) is above a threshold."""

    threshold: float = Field(0.5, gt=0)
    """Nats per token (0.5 in TRL, 1e-4 in slime)."""


class HighEntropyMask(Config):
    """Only the most uncertain tokens are trained on (80/20, arXiv 2506.01939)."""

    fraction: float = Field(0.2, gt=0, le=1)
    """Share of the mini-batch's response tokens, by entropy, that is kept; with all that tie at its edge, as the first
    tokens of a group do."""


class ClipCov(Config):
    """Drops a few random tokens whose covariance of log-prob and advantage is high (arXiv 2505.22617)."""

    fraction: float = Field(2e-4, gt=0, le=1)
    """Tokens to drop, of all response tokens of the mini-batch; at least one."""
    low: float = 1.0
    """Only tokens with a covariance above this are eligible ..."""
    high: float = 5.0
    """... and below this, and not clipped already."""


class Steer(Config):
    """Smaller weight where a token would move the entropy more (STEER, arXiv 2510.10150)."""

    shape: Literal["exponential", "linear"] = "exponential"
    """How the weight falls with the size of the predicted entropy change."""
    low: float = Field(0.8, gt=0, le=1)
    """Smallest weight."""
    high: float = Field(1.2, ge=1)
    """linear: largest weight. exponential starts at 1."""


class ClipB(Config):
    """Drops A < 0 tokens with S - mean(S) < -mu std(S), S = p (log p + H) (Clip_B, arXiv 2602.03392)."""

    mu: float = Field(2.5, gt=0)
    """Standard deviations."""


class ClipV(Config):
    """Drops the worst A < 0 tokens with x > mu std(x), x = sum p^2 (log p + H) - S (Clip_V, arXiv 2602.03392)."""

    mu: float = Field(8.5, gt=0)
    """Standard deviations."""
    max_fraction: float = Field(1e-4, gt=0, le=1)
    """At most this share of the response tokens is dropped."""


class EntropyRatioClip(Config):
    """ERC: only tokens whose entropy ratio H / H_old lies inside (low, high) are trained on (arXiv 2512.05591)."""

    low: float = Field(0.95, ge=0)
    """Lower bound, exclusive."""
    high: Unbounded = Field(1.05, gt=0)
    """Upper bound, exclusive; inf is none."""


class PositiveScale(Config):
    """Multiplies tokens with A > 0 (positive-advantage reweighting, arXiv 2511.05993)."""

    scale: float = Field(1.0, gt=0)
    """The factor, and where objective.controllers.positive_scale starts."""


class WeightsConfig(Config):
    """Token weights; each is absent or on, and those that are on multiply. None changes the aggregation's divisor."""

    tis: TruncatedImportance | None = None
    """Truncated importance weights."""
    importance_mask: MaskedImportance | None = None
    """Masked importance weights (MIS, IcePop)."""
    sequence_rejection: SequenceRejection | None = None
    """Rejection of mismatched responses."""
    opsm: OffPolicySequenceMask | None = None
    """Off-policy sequence mask."""
    high_entropy: HighEntropyMask | None = None
    """80/20 mask."""
    clip_cov: ClipCov | None = None
    """Clip-Cov."""
    steer: Steer | None = None
    """STEER."""
    clip_b: ClipB | None = None
    """Clip_B."""
    clip_v: ClipV | None = None
    """Clip_V."""
    erc: EntropyRatioClip | None = None
    """Entropy ratio clipping."""
    positive_scale: PositiveScale | None = None
    """Reweighting of positive advantages."""


class AggregationConfig(Config):
    """How token losses become the loss."""

    mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm", "seq-sum-token-mean", "token-sum"] = (
        "token-mean"
    )
    """How token losses become one number; verl's names. Normalisers are global over the mini-batch.
    seq-sum-token-mean: token means of the responses, added up (DCPO's OTM). token-sum: no divisor."""
    norm_length: int | None = Field(None, ge=1)
    """Constant divisor of seq-mean-token-sum-norm (Dr. GRPO); default: rollout.max_response_tokens."""
