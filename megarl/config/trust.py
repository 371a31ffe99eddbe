"""Plug point 3, trust: the ratio (level and anchor), its bounds (lo, hi per token), and the gate that uses them.

Bounds are named by what the paper names: `low` and `high` are distances from 1 (lo = 1 - low, hi = 1 + high), `cap` is
a ratio itself.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, ConfigError, Unbounded


class RatioConfig(Config):
    """The ratio r between the current policy and its anchor."""

    level: Literal["token", "sequence", "sequence_token", "geometric"] = "token"
    """token: per token. sequence: exp of the response's mean log ratio, its gradient through the mean (GSPO,
    arXiv 2507.18071). sequence_token: the same value, gradient through the own token only (GSPO-token). geometric:
    token ratios bounded first, then their geometric mean (GMPO, arXiv 2507.20673)."""
    anchor: Literal["old", "behavior"] = "old"
    """old: the trainer's log-probs before the batch's first update. behavior: vLLM's when it sampled."""


class NoClip(Config):
    """No bounds: lo = 0, hi = inf."""

    kind: Literal["none"]


class ConstantClip(Config):
    """lo = 1 - low, hi = 1 + high."""

    kind: Literal["constant"] = "constant"
    low: float = Field(0.2, ge=0, le=1)
    """Clip-low: ratios below 1-low are clipped where A < 0. 1.0 turns it off."""
    high: Unbounded = Field(0.2, ge=0)
    """Clip-high: ratios above 1+high are clipped where A > 0. inf turns it off."""


class LogClip(Config):
    """lo = exp(-low), hi = exp(high): distances of the log ratio (GMPO)."""

    kind: Literal["log"]
    low: Unbounded = Field(0.4, ge=0)
    """Distance of the log ratio below 0; inf turns clip-low off."""
    high: Unbounded = Field(0.4, ge=0)
    """Distance of the log ratio above 0; inf turns clip-high off."""


class FlexEcClip(Config):
    """Bounds linear in the token's probability: high(p) = upper_slope p + upper_start, low(p) likewise
    (FlexEC, arXiv 2602.09782; the constants from secondary sources), moved over the run by a schedule."""

    kind: Literal["flexec"]
    schedule: Literal["upper", "lower", "both", "id", "did", "od"] = "id"
    """upper: dynamic upper bound, `standard` below (raises entropy). lower: dynamic lower bound (lowers it). both:
    always both. id: increase then decrease. did: decrease, increase, decrease. od: oscillatory decay, hysteresis."""
    upper_slope: float = Field(-0.25, le=0)
    """Slope of high(p). Read by every schedule but lower."""
    upper_start: float = Field(0.5, ge=0)
    """high(0). Read by every schedule but lower."""
    lower_slope: float = Field(-0.13, le=0)
    """Slope of low(p). Read by every schedule but upper."""
    lower_start: float = Field(0.3, ge=0, le=1)
    """low(0). Read by every schedule but upper."""
    standard: float = Field(0.2, ge=0, le=1)
    """The constant distance a schedule starts from or returns to (the value of GRPO; the paper names none). Read by
    every schedule but both."""
    phase_split: float = Field(0.5, gt=0, lt=1)
    """Share of the steps in the first phase. Read by schedules id and did alone."""
    floor_ratio: float = Field(0.2, gt=0, lt=1)
    """The lower entropy threshold, relative to the starting entropy. Read by schedule od alone."""

    @model_validator(mode="after")
    def _lines_stay_above_zero(self) -> Self:
        for name in ("upper", "lower"):
            slope, start = getattr(self, f"{name}_slope"), getattr(self, f"{name}_start")
            if slope + start < 0:
                raise ConfigError(
                    f"objective.clip.{name}_slope {slope:g} + {name}_start {start:g} = {slope + start:g} is the "
                    "distance at p = 1 and must not be below 0; raise one of the two"
                )
        return self


class DcpoClip(Config):
    """Bounds from the old probability q (DCPO, arXiv 2509.02333): lo = 1/2 + 1/2 sqrt(max(1 - 4 low / q, 0)),
    hi = min(1/2 + 1/2 sqrt(1 + 4 high / q), cap)."""

    kind: Literal["dcpo"]
    low: float = Field(0.16, ge=0)
    """epsilon_low of the formula."""
    high: float = Field(0.2, ge=0)
    """epsilon_high of the formula."""
    cap: Unbounded = Field(10.0, gt=1)
    """Largest upper bound (a ratio); inf is none."""


class BapoClip(Config):
    """Bounds searched per mini-batch until positive tokens weigh enough (BAPO, arXiv 2510.18927). All are ratios.

    As in the authors' code: a rising lower bound also raises the negative sum, so once the first pair of bounds fails,
    the lower one goes to its stop before the upper one moves."""

    kind: Literal["bapo"]
    low_start: float = Field(0.6, ge=0, le=1)
    """First lower bound."""
    low_stop: float = Field(0.8, ge=0, le=1)
    """Largest lower bound."""
    low_step: float = Field(0.05, gt=0)
    """The lower bound rises by this, before the upper one moves."""
    high_start: float = Field(1.2, ge=1)
    """First upper bound."""
    high_stop: float = Field(2.0, ge=1)
    """Largest upper bound."""
    high_step: float = Field(0.05, gt=0)
    """The upper bound rises by this."""
    target: float = Field(1.0, gt=0)
    """Wanted (sum of positive contributions) / (sum of negative ones), as in the authors' code; the paper states the
    share of positives instead: share 0.5 is ratio 1."""


class ArcherClip(Config):
    """Constant distances, wider where the token's entropy is in its response's top share (Archer, arXiv 2510.06062)."""

    kind: Literal["archer"]
    low: float = Field(0.2, ge=0, le=1)
    """Both distances of the other tokens."""
    high_entropy: float = Field(0.4, ge=0, le=1)
    """Both distances of the high-entropy tokens."""
    quantile: float = Field(0.8, gt=0, lt=1)
    """Entropies above this quantile of the response's own tokens are high."""


Clip = Annotated[
    NoClip | ConstantClip | LogClip | FlexEcClip | DcpoClip | BapoClip | ArcherClip, Field(discriminator="kind")
]


class PpoGate(Config):
    """-min(r A, clip(r, lo, hi) A); g = r A inside the bound of A's side, 0 outside."""

    kind: Literal["ppo"] = "ppo"
    dual: Unbounded = Field(math.inf, gt=1)
    """Dual clip: where A < 0 the loss is at most -dual * A (arXiv 1912.09729). inf turns it off."""


class CeGppoGate(Config):
    """PPO whose clipped tokens keep a bounded gradient (CE-GPPO, arXiv 2509.20712)."""

    kind: Literal["ce_gppo"]
    low_scale: float = Field(0.75, ge=0)
    """beta_1: g = beta_1 lo A where A < 0 and r < lo."""
    high_scale: float = Field(1.0, ge=0)
    """beta_2: g = beta_2 hi A where A > 0 and r > hi."""
    dual: Unbounded = Field(10.0, gt=1)
    """Where A < 0 and r is above this ratio the gradient is 0. inf turns it off."""


class CispoGate(Config):
    """g = min(r, cap) A: no token is dropped (MiniMax-M1, arXiv 2506.13585). Reads no bounds."""

    kind: Literal["cispo"]
    cap: Unbounded = Field(5.0, gt=0)
    """Largest weight: a ratio, not a distance from 1 (ScaleRL 5.0; verl's epsilon 0.2 is cap 1.2); inf is none."""
    floor: float = Field(0.0, ge=0)
    """Smallest weight; 0 is off, as its authors have it."""


class SapoGate(Config):
    """A sigmoid instead of a bound: g = 4 s (1 - s) r A, s = sigmoid(tau (r - 1)) (SAPO, arXiv 2511.20347)."""

    kind: Literal["sapo"]
    positive_temperature: float = Field(1.0, gt=0)
    """tau where A > 0."""
    negative_temperature: float = Field(1.05, gt=0)
    """tau where A <= 0."""


class DppoGate(Config):
    """Drops tokens whose probability moved too far, and away from the anchor (DPPO, arXiv 2602.04879)."""

    kind: Literal["dppo"]
    divergence: Literal["tv", "kl"] = "tv"
    """tv: |pi - pi_anchor|. kl: KL between the two Bernoulli distributions of drawing the token."""
    low: Unbounded = Field(0.15, gt=0)
    """Largest divergence where A < 0 and the probability fell; inf drops none."""
    high: Unbounded = Field(0.15, gt=0)
    """Largest divergence where A > 0 and the probability rose; inf drops none."""
    cap: Unbounded = Field(20.0, gt=1)
    """Largest weight: g = min(r, cap) A where kept; inf is none."""


class AspoGate(Config):
    """Where A > 0 the weight is 1/r instead of r (ASPO, arXiv 2510.06062)."""

    kind: Literal["aspo"]
    cap: Unbounded = Field(3.0, gt=1)
    """Largest weight: of 1/r where A > 0, of r where A < 0; beyond it g = cap A. inf is none."""


Gate = Annotated[
    PpoGate | CeGppoGate | CispoGate | SapoGate | DppoGate | AspoGate,
    Field(discriminator="kind"),
]
