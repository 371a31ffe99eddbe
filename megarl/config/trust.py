"""Plug point 3, trust: the ratio (level and anchor) and its bounds (lo, hi per token); the gate uses them (`gate`).

Bounds are named by what the paper names: `low` and `high` are distances from 1 (lo = 1 - low, hi = 1 + high), `cap` is
a ratio itself.
"""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, assert_never

from pydantic import Field, model_validator

from megarl.config.base import Config, Unbounded
from megarl.config.clip_variant import ClipVariant, check_lines
from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.config.facts import Distance, NotBelow


class LevelFacts(NamedTuple):
    """What a level of the ratio says of itself."""

    per_response: bool
    """The loss has one ratio per response, so there are no bounds or gates of single tokens' ratios."""
    through_response: bool
    """A token's loss has a gradient in every token of its response, so dropping one token's loss would not drop its
    gradient, and there is one advantage per response."""
    bounds_first: bool
    """Token ratios are bounded before they are averaged."""
    of_prefix: bool = False
    """A token's ratio is that of everything up to it, so what is made of its own probability does not fit it."""


class RatioConfig(Config):
    """The ratio r between the current policy and its anchor."""

    level: Literal["token", "sequence", "sequence_token", "geometric", "prefix"] = "token"
    """token: per token. sequence: exp of the response's mean log ratio, its gradient through the mean (GSPO,
    arXiv 2507.18071). sequence_token: the same value, gradient through the own token only (GSPO-token). geometric:
    token ratios bounded first, then their geometric mean (GMPO, arXiv 2507.20673). prefix: the product over the
    response up to the token, gradient through the own token only (CTPO, arXiv 2605.07331)."""
    anchor: Literal["old", "behavior"] = "old"
    """old: the trainer's log-probs before the batch's first update. behavior: vLLM's when it sampled."""

    @property
    def facts(self) -> LevelFacts:
        match self.level:
            case "token":
                return LevelFacts(per_response=False, through_response=False, bounds_first=False)
            case "sequence":
                return LevelFacts(per_response=True, through_response=True, bounds_first=False)
            case "sequence_token":
                return LevelFacts(per_response=True, through_response=False, bounds_first=False)
            case "geometric":
                return LevelFacts(per_response=True, through_response=True, bounds_first=True)
            case "prefix":
                return LevelFacts(per_response=False, through_response=False, bounds_first=False, of_prefix=True)
        assert_never(self.level)

    @property
    def reads_behavior(self) -> bool:
        """Whether the ratio compares with vLLM's log-probs."""
        return self.anchor == "behavior"


class NoClip(ClipVariant):
    """No bounds: lo = 0, hi = inf."""

    kind: Literal["none"]
    sets_bounds: ClassVar[bool] = False
    of_tokens: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False


class ConstantClip(ClipVariant):
    """lo = 1 - low, hi = 1 + high."""

    kind: Literal["constant"] = "constant"
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: float = Field(0.2, ge=0, le=1)
    """Clip-low: ratios below 1-low are clipped where A < 0. 1.0 turns it off."""
    high: Annotated[Unbounded, Distance("ratio")] = Field(0.2, ge=0)
    """Clip-high: ratios above 1+high are clipped where A > 0. inf turns it off."""

    @property
    def bounds_above(self) -> bool:
        return self.high != math.inf

    @property
    def bounds_below(self) -> bool:
        return self.low != 1.0


class LogClip(ClipVariant):
    """lo = exp(-low), hi = exp(high): distances of the log ratio (GMPO)."""

    kind: Literal["log"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: Annotated[Unbounded, Distance("log ratio")] = Field(0.4, ge=0)
    """Distance of the log ratio below 0; inf turns clip-low off."""
    high: Annotated[Unbounded, Distance("log ratio")] = Field(0.4, ge=0)
    """Distance of the log ratio above 0; inf turns clip-high off."""

    @property
    def bounds_above(self) -> bool:
        return self.high != math.inf

    @property
    def bounds_below(self) -> bool:
        return self.low != math.inf


class FlexEcClip(ClipVariant):
    """Bounds linear in the token's probability: high(p) = upper_slope p + upper_start, low(p) likewise
    (FlexEC, arXiv 2602.09782; the constants from secondary sources), moved over the run by a schedule."""

    kind: Literal["flexec"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    of_probability: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
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

    @property
    def follows_entropy(self) -> bool:
        return self.schedule == "od"

    @property
    def follows_length(self) -> bool:
        return self.schedule in ("id", "did", "od")

    @model_validator(mode="after")
    def _lines_stay_above_zero(self) -> Self:
        check_lines(self)
        return self


class DcpoClip(ClipVariant):
    """Bounds from the old probability q (DCPO, arXiv 2509.02333): lo = 1/2 + 1/2 sqrt(max(1 - 4 low / q, 0)),
    hi = min(1/2 + 1/2 sqrt(1 + 4 high / q), cap)."""

    kind: Literal["dcpo"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    of_probability: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: float = Field(0.16, ge=0)
    """epsilon_low of the formula."""
    high: float = Field(0.2, ge=0)
    """epsilon_high of the formula."""
    cap: Unbounded = Field(10.0, gt=1)
    """Largest upper bound (a ratio); inf is none."""


class BapoClip(ClipVariant):
    """Bounds searched per mini-batch until positive tokens weigh enough (BAPO, arXiv 2510.18927). All are ratios.

    As in the authors' code: a rising lower bound also raises the negative sum, so once the first pair of bounds fails,
    the lower one goes to its stop before the upper one moves."""

    kind: Literal["bapo"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low_start: float = Field(0.6, ge=0, le=1)
    """First lower bound."""
    low_stop: Annotated[float, NotBelow("low_start")] = Field(0.8, ge=0, le=1)
    """Largest lower bound."""
    low_step: float = Field(0.05, gt=0)
    """The lower bound rises by this, before the upper one moves."""
    high_start: float = Field(1.2, ge=1)
    """First upper bound."""
    high_stop: Annotated[float, NotBelow("high_start")] = Field(2.0, ge=1)
    """Largest upper bound."""
    high_step: float = Field(0.05, gt=0)
    """The upper bound rises by this."""
    target: float = Field(1.0, gt=0)
    """Wanted (sum of positive contributions) / (sum of negative ones), as in the authors' code; the paper states the
    share of positives instead: share 0.5 is ratio 1."""


class ArcherClip(ClipVariant):
    """Constant distances, wider where the token's entropy is in its response's top share (Archer, arXiv 2510.06062)."""

    kind: Literal["archer"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: float = Field(0.2, ge=0, le=1)
    """Both distances of the other tokens."""
    high_entropy: float = Field(0.4, ge=0, le=1)
    """Both distances of the high-entropy tokens."""
    quantile: float = Field(0.8, gt=0, lt=1)
    """Entropies above this quantile of the response's own tokens are high."""


class GrowingClip(ClipVariant):
    """Distances of the log ratio that grow along the response: at its t-th token, from 1, lo = exp(-low t^power) and
    hi = exp(high t^power) (CTPO, arXiv 2605.07331)."""

    kind: Literal["growing"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: Annotated[Unbounded, Distance("log ratio")] = Field(0.025, ge=0)
    """Distance below 0 at the first token; inf turns clip-low off."""
    high: Annotated[Unbounded, Distance("log ratio")] = Field(0.05, ge=0)
    """Distance above 0 at the first token; inf turns clip-high off."""
    power: float = Field(0.5, ge=0)
    """0.5: as the deviation of a sum of independent log ratios grows. 0: the same everywhere."""

    @property
    def bounds_above(self) -> bool:
        return self.high != math.inf

    @property
    def bounds_below(self) -> bool:
        return self.low != math.inf


class StaleClip(ClipVariant):
    """Constant distances, of which the one on the side where a ratio lies shrinks for the stalest tokens: those whose
    |log r| is above a quantile q of the mini-batch get the share 1 / (1 + ((|log r| - q) / q)^power) of it (SAT,
    arXiv 2607.18722; where the function is centred is ours)."""

    kind: Literal["stale"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    follows_entropy: ClassVar[bool] = False
    follows_length: ClassVar[bool] = False
    low: float = Field(0.2, ge=0, le=1)
    """Distance below 1 of a token that is not stale. 1.0 turns clip-low off, but for stale tokens."""
    high: float = Field(0.2, ge=0)
    """Distance above 1 of a token that is not stale."""
    quantile: float = Field(0.9, gt=0, lt=1)
    """Share of the mini-batch's response tokens that is not stale."""
    power: float = Field(2.0, gt=0)
    """Of Hill's function."""


Clip = Annotated[
    NoClip
    | ConstantClip
    | LogClip
    | FlexEcClip
    | DcpoClip
    | BapoClip
    | ArcherClip
    | GrowingClip
    | StaleClip
    | ClosedLoopClip
    | ClosedLoopFlexEcClip,
    Field(discriminator="kind"),
]
