"""What else the appendix states, each with a number that must be small and the same number of a form that is wrong.

The wrong forms are near misses: were the statement not needed, they would do as well. Where the bounds clip nothing
they are right too; with two actions a single weight always fits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.config.theory import TheoryConfig
from megarl.theory.monte_carlo import random_pairs, sample_groups, sampled_terms
from megarl.theory.tabular import RANDOM_SIGN, Bounds, entropy, surrogate_gradient
from megarl.theory.theorems import (
    advantage_budget,
    advantage_step,
    natural_gradient_change,
    natural_gradient_step,
    natural_gradient_terms,
    policy_gradient_terms,
)
from megarl.theory.tree import Tree

LARGE_DELTA = 1.0
"""eta c w of the closed form, which is no approximation: far beyond any first order."""
_MOST_TREES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One statement."""

    statement: str
    measure: str
    """difference (largest, absolute), order (of what the formula leaves; 2: it is the first order), or |z|."""
    value: float | None
    """None: an order of no remainder."""
    wrong_form: str
    wrong_value: float | None


def study_identities(config: TheoryConfig) -> list[Identity]:
    """All of them on the configuration's pairs and bounds."""
    pairs = config.pairs
    logits, old_logits = random_pairs(
        pairs.count, pairs.vocabulary, old_scale=pairs.old_scale, drift=pairs.drift, seed=config.seed
    )
    old, bounds = old_logits.softmax(-1), Bounds(low=config.clip.low, high=config.clip.high)
    return [
        _natural_gradient(logits, old, bounds),
        _any_advantage(logits, old, bounds, config),
        *_state_weights(logits, old, bounds),
        _sampled(config, bounds),
    ]


def _natural_gradient(logits: Tensor, old: Tensor, bounds: Bounds) -> Identity:
    policy = logits.softmax(-1)
    exact = entropy(natural_gradient_step(logits, old, bounds, LARGE_DELTA)) - entropy(policy)
    first_order = natural_gradient_terms(policy, old, bounds).change(LARGE_DELTA)
    return Identity(
        statement=f"natural gradient, closed form at delta {LARGE_DELTA:g}",
        measure="difference",
        value=_largest(natural_gradient_change(policy, old, bounds, LARGE_DELTA) - exact),
        wrong_form="first order alone",
        wrong_value=_largest(first_order - exact),
    )


def _any_advantage(logits: Tensor, old: Tensor, bounds: Bounds, config: TheoryConfig) -> Identity:
    generator = torch.Generator().manual_seed(config.seed + 1)
    advantage = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    policy, rates = logits.softmax(-1), config.learning_rates[-2:]

    def remainder(predicted: Tensor, eta: float) -> float:
        after = advantage_step(logits, old, bounds, advantage=advantage, eta=eta)
        return (entropy(after) - entropy(policy) - eta * predicted).abs().median().item()

    def order(predicted: Tensor) -> float | None:
        first, second = (remainder(predicted, eta) for eta in rates)
        return math.log(first / second) / math.log(rates[0] / rates[1]) if first > 0 and second > 0 else None

    return Identity(
        statement="any advantages: dH = -eta E_old[r A m (Q - E[Q])]",
        measure="order",
        value=order(advantage_budget(policy, old, bounds, advantage)),
        wrong_form="without the clip's mask m",
        wrong_value=order(advantage_budget(policy, old, Bounds(low=1.0, high=math.inf), advantage)),
    )


def _state_weights(logits: Tensor, old: Tensor, bounds: Bounds) -> list[Identity]:
    """Of two-state episodes: the gradient of each state against automatic differentiation."""
    continues = torch.arange(logits.shape[-1]) % 2 == 0
    errors = []
    for start in range(0, min(2 * _MOST_TREES, len(logits) - 1), 2):
        tree = Tree(first_old=old[start], second_old=old[start + 1], continues=continues, bounds=bounds)
        errors.append(_tree_errors(tree, logits[start], logits[start + 1]))
    weight, visitation, per_action, single = (max(column) for column in zip(*errors, strict=True))
    return [
        Identity(
            statement="weight of a state w(s) = E[(1/T) sum_t 1{s_t = s}]",
            measure="difference",
            value=weight,
            wrong_form="visitation d(s)",
            wrong_value=visitation,
        ),
        Identity(
            statement="length that depends on the action: E[1/T | a]",
            measure="difference",
            value=per_action,
            wrong_form="the best single weight",
            wrong_value=single,
        ),
    ]


def _tree_errors(tree: Tree, first_logits: Tensor, second_logits: Tensor) -> tuple[float, float, float, float]:
    """Largest errors of the second state's gradient with w(s) and with d(s), and of the first's with E[1/T | a] and
    with the number in its place that fits best."""
    first, second = first_logits.softmax(-1), second_logits.softmax(-1)
    exact_second = _differentiate(lambda policy: tree.objective(first, policy), second_logits)
    closed = tree.second_gradient(second)
    exact_first = _differentiate(lambda policy: tree.objective(policy, second), first_logits)
    direction = surrogate_gradient(first, tree.first_old, tree.bounds, RANDOM_SIGN.positive_mean)
    best = (exact_first * direction).sum() / direction.square().sum().clamp(min=1e-300)
    return (
        _largest(closed - exact_second),
        _largest(closed * tree.visitation / tree.second_weight - exact_second),
        _largest(tree.first_gradient(first) - exact_first),
        _largest(best * direction - exact_first),
    )


def _sampled(config: TheoryConfig, bounds: Bounds) -> Identity:
    pairs = config.pairs
    groups = sample_groups(config.monte_carlo, old_scale=pairs.old_scale, drift=pairs.drift, seed=config.seed)
    policy, old = groups.logits.softmax(-1), groups.old_logits.softmax(-1)
    terms = policy_gradient_terms(policy, old, bounds)

    def largest_z(*, weighted: bool) -> float:
        sampled = sampled_terms(policy, old, bounds, groups.actions, weighted=weighted)
        differences = [
            samples.mean(-1) - exact for samples, exact in zip(sampled, (terms.low, terms.high), strict=True)
        ]
        errors = [(difference.std() / len(difference) ** 0.5).item() for difference in differences]
        scores = [abs(d.mean().item()) / error for d, error in zip(differences, errors, strict=True) if error > 0]
        return max(scores, default=0.0)

    return Identity(
        statement="CL and CH from samples of pi_old, weighted by r",
        measure="|z|",
        value=largest_z(weighted=True),
        wrong_form="without r",
        wrong_value=largest_z(weighted=False),
    )


def _differentiate(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Gradient [V] of a function of the policy with respect to its logits, by automatic differentiation."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf.softmax(-1)), leaf)
    return gradient


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()
