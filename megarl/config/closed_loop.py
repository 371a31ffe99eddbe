"""What a closed-loop clip steers to and how hard: the entropy wanted over the run, the gains of its controller."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, ConfigError


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
