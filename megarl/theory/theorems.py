"""Theorems 1 and 2 of arXiv 2509.26114: the entropy change of one update under an uninformative reward.

delta = eta c w is the size of the update: learning rate, E[max(A, 0)], weight of the state. With Q = pi (log pi + H),
p = pi(X), q = pi(Y) and every average under pi (the CURRENT policy, not the one that sampled):

  Theorem 1, policy gradient:   dH = delta [ p (E[Q] - E[Q|X])         - q (E[Q] - E[Q|Y])         ] + O(delta^2)
  Theorem 2, natural gradient:  dH = delta [ p (E[-log pi | X] - H)    - q (E[-log pi | Y] - H)    ] + O(delta^2)

The theorems give magnitudes, not signs. Clip-low raises entropy and clip-high lowers it where the brackets are
positive (the paper's conditions 7 and 8), which holds when every clipped action has -log pi >= H, but not in general.
Neither condition implies the other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.theory.tabular import (
    Bounds,
    clip_direction,
    clip_sets,
    entropy,
    expected_q,
    q_values,
    softmax_backward,
    surrogate_gradient,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTerms:
    """The two brackets of a theorem, each [...]."""

    low: Tensor
    """p (E[Q] - E[Q|X]) or p (E[-log pi | X] - H): what clip-low adds to the entropy per delta."""
    high: Tensor
    """The same of Y: what clip-high takes from the entropy per delta."""
    low_probability: Tensor
    """p."""
    high_probability: Tensor
    """q."""

    def change(self, delta: float) -> Tensor:
        """First-order entropy change, delta (low - high)."""
        return delta * (self.low - self.high)


def policy_gradient_terms(policy: Tensor, old: Tensor, bounds: Bounds, *, measure: Tensor | None = None) -> ClipTerms:
    """Theorem 1's brackets. p (E[Q] - E[Q|X]) is computed as E[1_X (E[Q] - Q)], which is 0 where X is empty.

    `measure` replaces pi in the averages; only None gives the theorem. Averages under pi_old, as one might read the
    paper's "X, Y determined by a ~ pi_old", are wrong by O(delta): `measure=old` shows it.
    """
    weight = policy if measure is None else measure
    q = q_values(policy)
    gap = (weight * q).sum(-1, keepdim=True) - q
    return _terms(gap, weight, clip_sets(policy, old, bounds))


def natural_gradient_terms(policy: Tensor, old: Tensor, bounds: Bounds, *, measure: Tensor | None = None) -> ClipTerms:
    """Theorem 2's brackets; `measure` as in `policy_gradient_terms`."""
    weight = policy if measure is None else measure
    gap = -policy.log() - entropy(policy)[..., None]
    return _terms(gap, weight, clip_sets(policy, old, bounds))


def _terms(gap: Tensor, weight: Tensor, sets: tuple[Tensor, Tensor]) -> ClipTerms:
    low_set, high_set = sets
    return ClipTerms(
        low=(weight * gap * low_set).sum(-1),
        high=(weight * gap * high_set).sum(-1),
        low_probability=(weight * low_set).sum(-1),
        high_probability=(weight * high_set).sum(-1),
    )


def policy_gradient_step(logits: Tensor, old: Tensor, bounds: Bounds, delta: float) -> Tensor:
    """The policy after theta + eta dJ/dtheta, [..., V]."""
    return (logits + surrogate_gradient(logits.softmax(-1), old, bounds, delta)).softmax(-1)


def natural_gradient_step(logits: Tensor, old: Tensor, bounds: Bounds, delta: float) -> Tensor:
    """The policy after pi exp(delta h) / Z, [..., V]."""
    return (logits + delta * clip_direction(logits.softmax(-1), old, bounds)).softmax(-1)


def natural_gradient_change(policy: Tensor, old: Tensor, bounds: Bounds, delta: float) -> Tensor:
    """The entropy change of the natural-gradient step in closed form, exact for any delta, without dual clip; [...].

    With Z = e^delta p + e^-delta q + 1 - p - q:
      -{ (e^delta - 1)/Z E[1_X log pi] - (1 - e^-delta)/Z E[1_Y log pi] + (1 - 1/Z) H } - KL(pi_next || pi).
    The last term is why entropy falls a little even where the first order is 0.
    """
    low_set, high_set = clip_sets(policy, old, bounds)
    step = torch.tensor(delta, dtype=policy.dtype)
    rise, fall = torch.expm1(step), -torch.expm1(-step)
    log_policy = policy.log()
    p, q = (policy * low_set).sum(-1), (policy * high_set).sum(-1)
    normaliser = 1 + rise * p - fall * q
    following = policy * torch.exp(step * (low_set.to(policy.dtype) - high_set.to(policy.dtype)))
    following = following / normaliser[..., None]
    moved = (
        rise / normaliser * (policy * low_set * log_policy).sum(-1)
        - fall / normaliser * (policy * high_set * log_policy).sum(-1)
        + (1 - 1 / normaliser) * entropy(policy)
    )
    return -moved - kl_divergence(following, policy)


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second), nats, [...]."""
    return (torch.xlogy(first, first) - torch.xlogy(first, second)).sum(-1)


def kept(policy: Tensor, old: Tensor, bounds: Bounds, advantage: Tensor) -> Tensor:
    """m(a): whether the clip leaves the gradient of an action with this advantage, [..., V]."""
    ratio = policy / old
    inside_low = (ratio > 1 - bounds.low) & (ratio < bounds.dual)
    return torch.where(advantage > 0, ratio < 1 + bounds.high, inside_low)


def advantage_step(logits: Tensor, old: Tensor, bounds: Bounds, *, advantage: Tensor, eta: float) -> Tensor:
    """The policy after one exact gradient step on J = sum pi_old min(r A, clip(r) A), any advantages A(a); [..., V]."""
    policy = logits.softmax(-1)
    gradient = advantage * kept(policy, old, bounds, advantage)
    return (logits + eta * softmax_backward(policy, gradient)).softmax(-1)


def advantage_budget(policy: Tensor, old: Tensor, bounds: Bounds, advantage: Tensor) -> Tensor:
    """First-order entropy change per eta for ANY advantages: -E_{a ~ pi_old}[ r A m (Q - E[Q]) ], [...].

    Each sampled token contributes -(r A m) (Q - E[Q]): the one number that says which way a method moves entropy.
    """
    coefficient = policy / old * advantage * kept(policy, old, bounds, advantage)
    return -(old * coefficient * (q_values(policy) - expected_q(policy)[..., None])).sum(-1)
