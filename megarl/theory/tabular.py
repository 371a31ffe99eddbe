"""The clipped objective of a tabular softmax policy at one state, exact (arXiv 2509.26114, section 2.1 and appendix A).

V = actions, always the last dimension; leading dimensions are a batch. float64.
pi = current policy (`policy`), pi_old = the one that sampled (`old`), r = pi / pi_old.
X = {r < 1 - low} and Y = {r > 1 + high}, both strict: the actions clip-low and clip-high may act on.

What is true, when the advantage A does not depend on the action and E[A] = 0, with c = E[max(A, 0)]:
  dJ/dpi(a)    = w c h(a),                       h = 1_X - 1_Y, and + 1[r > dual] where the dual clip is on;
  dJ/dtheta(a) = w c pi(a) (h(a) - E_pi[h]),
so without clipping the gradient is 0: an uninformative reward moves the policy through the clip alone. pi_old cancels,
which is why every average here is under pi. Symmetry of A is not needed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Where the ratio is clipped."""

    low: float
    """X = {r < 1 - low}; 1.0 is off."""
    high: float
    """Y = {r > 1 + high}; inf is off."""
    dual: float = math.inf
    """Where A < 0 the objective is at least dual * A; inf is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageLaw:
    """A distribution of the advantage that does not depend on the action."""

    values: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        mean = sum(value * p for value, p in zip(self.values, self.probabilities, strict=True))
        if abs(sum(self.probabilities) - 1) > 1e-12 or abs(mean) > 1e-12:
            raise ValueError(
                f"expected probabilities that add up to 1 and a mean of 0, found {self.probabilities} "
                f"with mean {mean:g}"
            )

    @property
    def positive_mean(self) -> float:
        """c = E[max(A, 0)]; mu nu of the paper, where A > 0 with probability nu and then has mean mu."""
        return sum(max(value, 0.0) * p for value, p in zip(self.values, self.probabilities, strict=True))


RANDOM_SIGN = AdvantageLaw(values=(1.0, -1.0), probabilities=(0.5, 0.5))
"""A = +1 or -1 with equal probability; c = 0.5."""


def entropy(policy: Tensor) -> Tensor:
    """H = -sum pi log pi, nats, [...]; actions of probability 0 contribute 0."""
    return -torch.xlogy(policy, policy).sum(-1)


def q_values(policy: Tensor) -> Tensor:
    """Q(a) = pi(a) (log pi(a) + H), [..., V]. -Q is the gradient of H with respect to the logits (paper: Eq. 9)."""
    return torch.xlogy(policy, policy) + policy * entropy(policy)[..., None]


def expected_q(policy: Tensor) -> Tensor:
    """E_pi[Q] = sum pi^2 log pi + H sum pi^2 = Cov_pi(pi, log pi), [...]; never negative (Chebyshev's inequality)."""
    return (policy * q_values(policy)).sum(-1)


def clip_sets(policy: Tensor, old: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """(X, Y) as booleans, [..., V]. X needs pi < 1 - low; Y needs pi_old < 1 / (1 + high)."""
    ratio = policy / old
    return ratio < 1 - bounds.low, ratio > 1 + bounds.high


def clip_direction(policy: Tensor, old: Tensor, bounds: Bounds) -> Tensor:
    """h = 1_X + 1[r > dual] - 1_Y, [..., V]: the direction in which clipping moves each action's probability.

    Beyond max(dual, 1 + high) h is 0: the dual clip cancels the bias of clip-high.
    """
    low_set, high_set = clip_sets(policy, old, bounds)
    beyond = policy / old > bounds.dual
    return low_set.to(policy.dtype) + beyond.to(policy.dtype) - high_set.to(policy.dtype)


def clipped_terms(policy: Tensor, old: Tensor, bounds: Bounds, advantage: float | Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A), at least dual * A where A < 0; [..., V]."""
    ratio = policy / old
    advantage = torch.as_tensor(advantage, dtype=policy.dtype)
    terms = torch.minimum(ratio * advantage, ratio.clamp(1 - bounds.low, 1 + bounds.high) * advantage)
    if math.isinf(bounds.dual):
        return terms
    return torch.where(advantage < 0, torch.maximum(terms, bounds.dual * advantage), terms)


def clipped_surrogate(policy: Tensor, old: Tensor, bounds: Bounds, law: AdvantageLaw) -> Tensor:
    """J = sum_a pi_old(a) E_A[min(r A, clip(r) A)], [...]: the objective at a state of weight w = 1."""
    weighted = [
        probability * clipped_terms(policy, old, bounds, value)
        for value, probability in zip(law.values, law.probabilities, strict=True)
    ]
    return (old * torch.stack(weighted).sum(0)).sum(-1)


def surrogate_gradient(policy: Tensor, old: Tensor, bounds: Bounds, scale: float) -> Tensor:
    """dJ/dtheta = scale * pi (h - E_pi[h]), [..., V], with scale = w c; exact off the kinks r = 1 - low, 1 + high."""
    return scale * softmax_backward(policy, clip_direction(policy, old, bounds))


def softmax_backward(policy: Tensor, gradient: Tensor) -> Tensor:
    """pi (g - E_pi[g]): the gradient with respect to the logits of a function with gradient g in pi, [..., V]."""
    return policy * (gradient - (policy * gradient).sum(-1, keepdim=True))
