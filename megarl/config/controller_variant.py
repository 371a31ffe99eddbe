"""What a controller says of itself."""

from abc import abstractmethod

from megarl.config.facts import Variant


class ControllerVariant(Variant):
    """What changes something over the run, and what it says of itself."""

    @property
    @abstractmethod
    def acts_on(self) -> str:
        """The table below `objective` that it changes and therefore needs."""

    @property
    @abstractmethod
    def effect(self) -> str:
        """What it does there, in words that name the key; two with the same effect cannot both be on."""

    @property
    @abstractmethod
    def follows_entropy(self) -> bool:
        """Whether what it sets for a step follows from the entropy before the step's first update."""
