"""What the closed loop of a clip tells the ranks, and what they tell back of a mini-batch. Imports no torch.

Shares are of the budget's size: the sum over tokens of |c (Q - N)| with no bound, see `accounting`'s entropy budget.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopControls:
    """The loop's numbers before an update; the same on every rank."""

    target: float
    """Entropy that is wanted after the step, nats per token."""
    entropy: float
    """Exact mean entropy before the step's first update."""
    offset: float
    """Share that is asked for whatever the error."""
    knob: float
    """Where the last update left it, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopChoice:
    """What was chosen for an update, and why."""

    knob: float
    """0 to 1: 1 is where the bounds raise the entropy most."""
    wanted: float
    """Share that the error asks for, -1 to 1."""
    predicted: float
    """Share that the update will have with the bounds that were chosen, to first order."""
    size: float
    """The budget's size, nats per unit of learning rate."""
    entropy: float
    """Of the policy before this update: the step's, moved as far as the mini-batch's own tokens have moved since."""
