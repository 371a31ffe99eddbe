"""Sampled estimators of the theorems' terms, and the entropy change of sampled groups against the prediction.

Samples come from pi_old, the theorems' averages are under pi: each sample carries the weight r = pi / pi_old. Without
it the estimate is biased. These are the estimators a trainer logs per token:
  CL = mean[r 1_X (E[Q] - Q)] -> p (E[Q] - E[Q|X]),   CH = mean[r 1_Y (E[Q] - Q)] -> q (E[Q] - E[Q|Y]).

The group-mean baseline couples the advantages of a group, but E[A | own action] stays 0, so the first order is exact
in expectation, with c = E[max(A, 0)] over the number of rewarded samples in the group.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.config.theory import MonteCarloConfig
from megarl.theory.tabular import Bounds, clip_sets, entropy, expected_q, q_values, softmax_backward
from megarl.theory.theorems import kept, policy_gradient_terms


def sampled_terms(
    policy: Tensor, old: Tensor, bounds: Bounds, actions: Tensor, *, weighted: bool = True
) -> tuple[Tensor, Tensor]:
    """Per-sample (r 1_X (E[Q] - Q), r 1_Y (E[Q] - Q)) of actions [..., N] drawn from `old` [..., V].

    `weighted=False` leaves r out and is biased; it exists to show that.
    """
    low_set, high_set = clip_sets(policy, old, bounds)
    gap = expected_q(policy)[..., None] - q_values(policy)
    weighted_gap = gap * (policy / old) if weighted else gap
    return (weighted_gap * low_set).gather(-1, actions), (weighted_gap * high_set).gather(-1, actions)


def random_pairs(count: int, vocabulary: int, *, old_scale: float, drift: float, seed: int) -> tuple[Tensor, Tensor]:
    """(current logits, old logits), [count, vocabulary]: old ~ N(0, old_scale^2), current = old + N(0, drift^2)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, vocabulary)
    old = old_scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return old + drift * torch.randn(shape, generator=generator, dtype=torch.float64), old


def group_positive_mean(group: int, probability: float) -> float:
    """E[max(A, 0)] with Bernoulli rewards and the group mean as baseline: sum_k P(k) (k/G) (1 - k/G)."""
    return sum(
        math.comb(group, k) * probability**k * (1 - probability) ** (group - k) * (k / group) * (1 - k / group)
        for k in range(group + 1)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """One group of samples at each of S states."""

    logits: Tensor
    """Current, [S, V]."""
    old_logits: Tensor
    actions: Tensor
    """int64 [S, G], drawn from the old policy."""
    advantage: Tensor
    """[S, G]: reward - group mean."""


def sample_groups(config: MonteCarloConfig, *, old_scale: float, drift: float, seed: int) -> Groups:
    """Draw states, actions and Bernoulli rewards."""
    logits, old_logits = random_pairs(config.states, config.vocabulary, old_scale=old_scale, drift=drift, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    actions = torch.multinomial(old_logits.softmax(-1), config.group, replacement=True, generator=generator)
    draws = torch.rand(actions.shape, generator=generator, dtype=torch.float64)
    rewards = (draws < config.reward_probability).to(torch.float64)
    return Groups(
        logits=logits, old_logits=old_logits, actions=actions, advantage=rewards - rewards.mean(-1, keepdim=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlopeRow:
    """First-order coefficient of the entropy change per learning rate, measured and predicted; means over states."""

    low: float
    high: float
    measured: float
    standard_error: float
    """Of measured - predicted, state by state."""
    predicted: float
    """E[max(A, 0)] mean(CL - CH)."""
    z: float | None
    """(measured - predicted) / standard_error; None without clip, where nothing is random in the difference."""
    curvature: float
    """Second-order coefficient: negative without any clip too, so a finite step loses entropy anyway."""


def measure_slope(groups: Groups, bounds: Bounds, config: MonteCarloConfig) -> SlopeRow:
    """dH = a eta + b eta^2 + O(eta^3), solved from two step sizes; each state also with its advantages' signs flipped.

    Flipping (reward R -> 1 - R) cancels what is odd in the advantages: without clip that is all of the first order.
    """
    eta = config.learning_rate
    full = _mean_change(groups, bounds, eta)
    half = _mean_change(groups, bounds, eta / 2)
    slope = (4 * half - full) / eta
    curvature = 2 * (full - 2 * half) / eta**2
    policy, old = groups.logits.softmax(-1), groups.old_logits.softmax(-1)
    terms = policy_gradient_terms(policy, old, bounds)
    predicted = group_positive_mean(config.group, config.reward_probability) * (terms.low - terms.high)
    difference = slope - predicted
    error = (difference.std() / len(difference) ** 0.5).item()
    clipped = bounds.low < 1 or math.isfinite(bounds.high)
    return SlopeRow(
        low=bounds.low,
        high=bounds.high,
        measured=slope.mean().item(),
        standard_error=error,
        predicted=predicted.mean().item(),
        z=difference.mean().item() / error if clipped and error > 0 else None,
        curvature=curvature.mean().item(),
    )


def _mean_change(groups: Groups, bounds: Bounds, eta: float) -> Tensor:
    """Entropy change [S] of one step on the sampled objective, averaged over the advantages and their negatives."""
    policy = groups.logits.softmax(-1)
    old = groups.old_logits.softmax(-1)
    before = entropy(policy)
    chosen, chosen_old = (table.gather(-1, groups.actions) for table in (policy, old))
    changes = []
    for advantage in (groups.advantage, -groups.advantage):
        coefficient = chosen / chosen_old * advantage * kept(chosen, chosen_old, bounds, advantage)
        # The sampled gradient sum_i g_i (1[a_i] - pi) / G is the softmax backward of sum_i g_i 1[a_i] / (G pi).
        per_action = torch.zeros_like(policy).scatter_add_(-1, groups.actions, coefficient / groups.actions.shape[-1])
        gradient = softmax_backward(policy, per_action / policy)
        changes.append(entropy((groups.logits + eta * gradient).softmax(-1)) - before)
    return torch.stack(changes).mean(0)
