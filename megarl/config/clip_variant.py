"""What every choice of bounds says of itself."""

from abc import abstractmethod
from typing import ClassVar

from megarl.config.base import ConfigError
from megarl.config.facts import RuleName, Variant


class ClipVariant(Variant):
    """A choice of bounds, and what it says of itself."""

    @property
    @abstractmethod
    def sets_bounds(self) -> bool:
        """Whether it gives bounds at all."""

    @property
    @abstractmethod
    def of_tokens(self) -> bool:
        """Whether its bounds are of single tokens' ratios, so that it needs a ratio per token."""

    @property
    @abstractmethod
    def needs_survey(self) -> bool:
        """Whether it reads statistics of the whole mini-batch under the current weights."""

    @property
    @abstractmethod
    def follows_entropy(self) -> bool:
        """Whether its bounds of a step follow from the entropy before the step's first update."""

    @property
    @abstractmethod
    def follows_length(self) -> bool:
        """Whether its bounds of a step depend on how many steps the run has."""

    of_probability: ClassVar[bool] = False
    """Whether its bounds follow from the probability of the token itself, so that they fit its own ratio alone."""

    @property
    def bounds_above(self) -> bool:
        """Whether it sets an upper bound."""
        return self.sets_bounds

    @property
    def bounds_below(self) -> bool:
        """Whether it sets a lower bound."""
        return self.sets_bounds

    @property
    @abstractmethod
    def steers(self) -> bool:
        """Whether it chooses its bounds by what they make of an update's entropy budget."""

    @property
    def rules(self) -> tuple[RuleName, ...]:
        """The rules that may act on tokens because of it."""
        return ("clip_low", "clip_high") if self.sets_bounds else ()


def check_lines(clip: ClipVariant) -> None:
    """ConfigError where a line of FlexEC's, upper or lower, goes below 0."""
    for name in ("upper", "lower"):
        slope, start = getattr(clip, f"{name}_slope"), getattr(clip, f"{name}_start")
        if slope + start < 0:
            raise ConfigError(
                f"objective.clip.{name}_slope {slope:g} + {name}_start {start:g} = {slope + start:g} is the "
                "distance at p = 1 and must not be below 0; raise one of the two"
            )
