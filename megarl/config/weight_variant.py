"""What a token weight says of itself."""

from abc import abstractmethod
from typing import Literal

from megarl.config.facts import RuleName, Variant


class WeightVariant(Variant):
    """A token weight, and what it says of itself."""

    @property
    @abstractmethod
    def tells_tokens_apart(self) -> bool:
        """Whether the tokens of a response may get different weights from it."""

    @property
    @abstractmethod
    def needs_survey(self) -> bool:
        """Whether it reads statistics of the whole mini-batch under the current weights."""

    @property
    @abstractmethod
    def mismatch(self) -> Literal["ignores", "filters", "corrects"]:
        """What it does with the trainer-vLLM mismatch, for which it reads vLLM's log-probs: filters by it, or corrects
        it by multiplying with old / behavior."""

    @property
    @abstractmethod
    def compares_updates(self) -> bool:
        """Whether it compares with the policy before the batch's first update, so that one update leaves it idle."""

    @property
    @abstractmethod
    def rules(self) -> tuple[RuleName, ...]:
        """The rules that may act on tokens because of it."""
