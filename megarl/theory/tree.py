"""A two-state episode, which shows what weight a state has: w(s) = E[(1/T) sum_t 1{s_t = s}], not its visitation d(s).

The first state's action either ends the episode (T = 1) or leads to the second state, whose action ends it (T = 2).
J = E_{y ~ old}[(1/T) sum_t min(r_t A, clip(r_t) A)], with one advantage A per episode that no action influences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.theory.tabular import (
    RANDOM_SIGN,
    AdvantageLaw,
    Bounds,
    clip_direction,
    clipped_surrogate,
    clipped_terms,
    softmax_backward,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Policies of the two states, [V] each."""

    first_old: Tensor
    second_old: Tensor
    continues: Tensor
    """bool [V]: the first actions that lead to the second state."""
    bounds: Bounds
    law: AdvantageLaw = RANDOM_SIGN

    @property
    def inverse_length(self) -> Tensor:
        """E[1/T | first action], [V]."""
        return torch.where(self.continues, 0.5, 1.0).to(self.first_old.dtype)

    @property
    def visitation(self) -> Tensor:
        """d of the second state: the probability of reaching it."""
        return (self.first_old * self.continues).sum()

    @property
    def second_weight(self) -> Tensor:
        """w of the second state: every episode that reaches it has T = 2."""
        return (self.first_old * self.continues * self.inverse_length).sum()

    def objective(self, first: Tensor, second: Tensor) -> Tensor:
        """J summed over every episode."""
        per_action = sum(
            probability * clipped_terms(first, self.first_old, self.bounds, value)
            for value, probability in zip(self.law.values, self.law.probabilities, strict=True)
        )
        after = clipped_surrogate(second, self.second_old, self.bounds, self.law)
        return (self.first_old * self.inverse_length * (per_action + self.continues * after)).sum()

    def second_gradient(self, second: Tensor) -> Tensor:
        """dJ/dtheta of the second state: w c pi (h - E[h]), [V]."""
        h = clip_direction(second, self.second_old, self.bounds)
        return self.second_weight * self.law.positive_mean * softmax_backward(second, h)

    def first_gradient(self, first: Tensor) -> Tensor:
        """dJ/dtheta of the first state, [V]: the length depends on the action, so E[1/T | a] multiplies h(a) itself.

        No single weight of the state gives this gradient.
        """
        h = clip_direction(first, self.first_old, self.bounds) * self.inverse_length
        return self.law.positive_mean * softmax_backward(first, h)
