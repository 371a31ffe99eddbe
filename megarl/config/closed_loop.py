"""Clips in a closed loop: the bounds they choose from, the entropy they steer to, and how hard."""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, ConfigError, Unbounded
from megarl.config.clip_variant import ClipVariant, check_lines
from megarl.config.facts import Distance, NotBelow


class LoopConfig(Config):
    """The entropy that is wanted, and what share of an update's entropy budget an error asks for.

    A budget's scale means nothing under Adam, so what is asked for is a share of its size, the sum of the tokens'
    contributions without their signs: 1 would be an update all of whose tokens raise the entropy, -1 one all of whose
    tokens lower it, 0 one that leaves it where it is to first order.
    """

    at: list[float] = Field([0.0], min_length=1)
    """Where the target is given, rising; lines between, constant before and after. One point is a target that holds."""
    entropy: list[float] = Field([1.0], min_length=1)
    """The target at each of them."""
    over: Literal["run", "steps"] = "run"
    """What `at` counts: run: the share of the run's steps that are done, 0 to 1. steps: steps that are done."""
    unit: Literal["start", "nats"] = "start"
    """Of `entropy`. start: the entropy of the run's first step. nats: nats per token."""
    gain: float = Field(4.0, gt=0)
    """Share asked for per relative error, (target - entropy) / target: 4 asks for all at 25 % too little."""
    integral: float = Field(0.5, ge=0)
    """What a step's relative error adds to the share that is asked for from then on, against a drift that bounds do not
    cause; not while the bounds are at their end. 0: none."""
    band: float = Field(0.02, ge=0, lt=1)
    """Hysteresis: bounds stay as they are while the share they give is off by at most this."""

    @property
    def follows_length(self) -> bool:
        """Whether the target of a step depends on how many steps the run has."""
        return self.over == "run" and len(self.at) > 1

    def target(self, *, steps_done: int, total_steps: int, entropy_start: float) -> float:
        """What is wanted once `steps_done` steps are done, nats per token."""
        place = steps_done / total_steps if self.over == "run" else float(steps_done)
        scale = entropy_start if self.unit == "start" else 1.0
        return scale * self._line(place)

    def _line(self, place: float) -> float:
        if place <= self.at[0]:
            return self.entropy[0]
        for (start, low), (end, high) in pairwise(zip(self.at, self.entropy, strict=True)):
            if place <= end:
                share = (place - start) / (end - start)
                return (1.0 - share) * low + share * high
        return self.entropy[-1]

    @model_validator(mode="after")
    def _points_make_a_line(self) -> Self:
        problems = []
        if len(self.at) != len(self.entropy):
            problems.append(
                f"{len(self.at)} places and {len(self.entropy)} entropies; give one entropy for each of `at`"
            )
        if any(after <= before for before, after in pairwise(self.at)):
            problems.append(f"at must rise from point to point, found {self.at}")
        if self.over == "run" and not all(0 <= place <= 1 for place in self.at):
            problems.append(
                f'at are shares of the run and lie in 0 to 1, found {self.at}; for step numbers set over = "steps"'
            )
        if any(value <= 0 for value in self.entropy):
            problems.append(f"entropies are above 0, found {self.entropy}: no policy that samples has less")
        if problems:
            problems = [f"objective.clip.loop: {text}" for text in problems]
            raise ConfigError("\n".join(problems), problems)
        return self


class ClosedLoopClip(ClipVariant):
    """Constant bounds that are chosen for every mini-batch so that the update's entropy budget is what the entropy's
    distance from a target asks for. One knob, 0 to 1: at 0 high is tight and low loose, at 1 low is tight and high
    loose; in between both move together. Ours: the clip paper (arXiv 2509.26114) leaves the bounds to be tuned."""

    kind: Literal["closed_loop"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    follows_entropy: ClassVar[bool] = True
    low_tight: float = Field(0.02, ge=0, le=1)
    """Smallest distance of the lower bound: where entropy is to rise most."""
    low_loose: Annotated[float, NotBelow("low_tight")] = Field(0.4, ge=0, le=1)
    """Its largest distance; 1.0 is off."""
    high_tight: Annotated[Unbounded, Distance("ratio")] = Field(0.02, ge=0)
    """Smallest distance of the upper bound: where entropy is to fall most. inf, as high_loose: clip-low alone moves."""
    high_loose: Annotated[Unbounded, Distance("ratio"), NotBelow("high_tight")] = Field(0.4, ge=0)
    """Its largest distance; inf only where high_tight is."""
    loop: LoopConfig = LoopConfig()
    """What is steered to, and how hard."""

    @property
    def follows_length(self) -> bool:
        return self.loop.follows_length

    @property
    def bounds_above(self) -> bool:
        return not math.isinf(self.high_loose)

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if math.isinf(self.high_loose) and not math.isinf(self.high_tight):
            raise ConfigError(
                f"objective.clip.high_loose is inf and high_tight {self.high_tight:g}: no bound is in the middle of "
                "the two; set high_loose to a number (a ratio seldom moves by 1), or both to inf to leave clip-high off"
            )
        if self.low_tight == self.low_loose and self.high_tight == self.high_loose:
            raise ConfigError(
                f"objective.clip: low_tight = low_loose = {self.low_loose:g} and high_tight = high_loose = "
                f'{self.high_loose:g} leave nothing to choose; give a range, or set kind = "constant"'
            )
        return self


class ClosedLoopFlexEcClip(ClipVariant):
    """FlexEC's lines as the knob of a closed loop: at 1 its raising mode, high(p) = upper_slope p + upper_start with
    low at `standard`; at 0 its lowering mode, low(p) = lower_slope p + lower_start with high at `standard`; mixed in
    between. The lines are those of arXiv 2602.09782 (secondary sources), whose schedules run open loop; the loop is
    ours."""

    kind: Literal["closed_loop_flexec"]
    sets_bounds: ClassVar[bool] = True
    of_tokens: ClassVar[bool] = True
    of_probability: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    follows_entropy: ClassVar[bool] = True
    upper_slope: float = Field(-0.25, le=0)
    """Slope of high(p)."""
    upper_start: float = Field(0.5, ge=0)
    """high(0)."""
    lower_slope: float = Field(-0.13, le=0)
    """Slope of low(p)."""
    lower_start: float = Field(0.3, ge=0, le=1)
    """low(0)."""
    standard: float = Field(0.2, ge=0, le=1)
    """The constant distance of the other side."""
    loop: LoopConfig = LoopConfig()
    """What is steered to, and how hard."""

    @property
    def follows_length(self) -> bool:
        return self.loop.follows_length

    @model_validator(mode="after")
    def _lines_stay_above_zero(self) -> Self:
        check_lines(self)
        return self

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        standard = (0.0, self.standard)
        if (self.upper_slope, self.upper_start) == (self.lower_slope, self.lower_start) == standard:
            raise ConfigError(
                f"objective.clip: the upper and the lower line are the constant distance standard {self.standard:g}, "
                'which leaves nothing to choose; change upper_start or lower_start, or set kind = "constant"'
            )
        return self
