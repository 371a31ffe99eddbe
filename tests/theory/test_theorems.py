"""Theorems 1 and 2 of arXiv 2509.26114 and their appendix, checked against finite differences and exact steps.

A check of an order or an average comes with one of the wrong form, which must fail it.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megarl.theory.counterexamples import CASES, Worked, work_case
from megarl.theory.monte_carlo import random_pairs
from megarl.theory.tabular import (
    RANDOM_SIGN,
    AdvantageLaw,
    Bounds,
    clip_direction,
    clip_sets,
    clipped_surrogate,
    entropy,
    expected_q,
    q_values,
    surrogate_gradient,
)
from megarl.theory.theorems import (
    advantage_budget,
    advantage_step,
    kl_divergence,
    natural_gradient_change,
    natural_gradient_step,
    natural_gradient_terms,
    policy_gradient_step,
    policy_gradient_terms,
)
from megarl.theory.tree import Tree

SYMMETRIC = Bounds(low=0.2, high=0.2)
SKEWED = AdvantageLaw(values=(-0.3, 0.7), probabilities=(0.7, 0.3))
OFF = math.inf


def pairs(count: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(current logits, old policy) without ratios at a kink."""
    logits, old = random_pairs(count, vocabulary, old_scale=2.0, drift=0.5, seed=seed)
    return logits, old.softmax(-1)


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, *, step: float = 1e-6) -> Tensor:
    """Gradient [..., V] of a function of logits [..., V] with values [...]."""
    columns = []
    for column in range(at.shape[-1]):
        shift = torch.zeros_like(at)
        shift[..., column] = step
        columns.append((function(at + shift) - function(at - shift)) / (2 * step))
    return torch.stack(columns, -1)


def off_kinks(logits: Tensor, old: Tensor, bounds: Bounds) -> Tensor:
    """Which pairs have no ratio within 1e-4 of a bound, where the objective has a kink."""
    ratio = logits.softmax(-1) / old
    edges = [1 - bounds.low, 1 + bounds.high, bounds.dual]
    return torch.stack([((ratio - edge).abs() > 1e-4).all(-1) for edge in edges]).all(0)


# The gradient (C1, C1b, C1c, C8)


@pytest.mark.parametrize(
    ("bounds", "law", "scale"),
    [
        (SYMMETRIC, RANDOM_SIGN, 0.5),
        (Bounds(low=0.15, high=0.28), SKEWED, 0.21),
        (Bounds(low=0.2, high=0.2, dual=1.5), RANDOM_SIGN, 0.5),
        (Bounds(low=0.2, high=0.28, dual=3.0), SKEWED, 0.21),
    ],
    ids=["signs", "skewed", "dual", "dual-skewed"],
)
def test_closed_form_gradient_is_the_objectives(bounds: Bounds, law: AdvantageLaw, scale: float) -> None:
    logits, old = pairs(50, 12)
    smooth = off_kinks(logits, old, bounds)
    assert smooth.sum() > 40
    numeric = central_difference(lambda at: clipped_surrogate(at.softmax(-1), old, bounds, law), logits)
    assert law.positive_mean == pytest.approx(scale, abs=1e-15)
    closed = surrogate_gradient(logits.softmax(-1), old, bounds, scale)
    assert (numeric - closed)[smooth].abs().max() < 1e-8
    assert closed.abs().max() > 1e-2


def test_the_dual_clip_changes_the_direction() -> None:
    """r = 2 with dual 1.5: clip-high's -1 and dual's +1 cancel; r = 1.3 keeps -1; r = 0.5 keeps +1."""
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    policy = torch.tensor([0.4, 0.39, 0.25], dtype=torch.float64)
    assert clip_direction(policy, old, Bounds(low=0.2, high=0.2, dual=1.5)).tolist() == [0, -1, 1]
    assert clip_direction(policy, old, SYMMETRIC).tolist() == [-1, -1, 1]


def test_no_gradient_before_the_first_update_or_without_clip() -> None:
    logits, old = pairs(20, 12)
    on_policy = central_difference(
        lambda at: clipped_surrogate(at.softmax(-1), old, SYMMETRIC, RANDOM_SIGN), old.log(), step=1e-5
    )
    assert on_policy.abs().max() < 1e-9
    no_clip = Bounds(low=1.0, high=OFF)
    free = central_difference(lambda at: clipped_surrogate(at.softmax(-1), old, no_clip, SKEWED), logits, step=1e-5)
    assert free.abs().max() < 1e-9
    assert surrogate_gradient(logits.softmax(-1), old, no_clip, 0.5).abs().max() == 0


def test_an_advantage_with_a_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mean of 0, found \(0\.5, 0\.5\) with mean 0\.5"):
        AdvantageLaw(values=(0.0, 1.0), probabilities=(0.5, 0.5))


# Orders (C2, C3) and what fails them (C3neg, C3c)


def halving_ratios(error: Callable[[float], Tensor], steps: tuple[float, ...]) -> Tensor:
    """error(step) / error(step / 2) of every pair: 4 for a second-order remainder, 2 for a first-order one."""
    errors = [error(step).abs() for step in steps]
    return torch.cat([first / second for first, second in itertools.pairwise(errors)])


def test_q_is_the_entropys_gradient() -> None:
    logits, _ = pairs(100, 12)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    first_order = -(direction * q_values(logits.softmax(-1))).sum(-1)

    def error(eta: float) -> Tensor:
        change = entropy((logits + eta * direction).softmax(-1)) - entropy(logits.softmax(-1))
        return change - eta * first_order

    assert 3.7 < halving_ratios(error, (1e-2, 5e-3, 2.5e-3)).median() < 4.3


def remainder(
    theorem: str, predicted: Callable[[Tensor, Tensor], Tensor], *, bounds: Bounds = SYMMETRIC
) -> tuple[Tensor, Tensor]:
    """(halving ratios, relative error at eta 0.05) of `predicted(policy, old)` per delta against the exact step."""
    logits, old = pairs(200, 30)
    policy = logits.softmax(-1)
    step = {"pg": policy_gradient_step, "npg": natural_gradient_step}[theorem]

    def error(eta: float) -> Tensor:
        change = entropy(step(logits, old, bounds, 0.5 * eta)) - entropy(policy)
        return change - 0.5 * eta * predicted(policy, old)

    relative = error(0.05).abs() / (0.025 * predicted(policy, old)).abs()
    return halving_ratios(error, (0.2, 0.1, 0.05)), relative


@pytest.mark.parametrize("theorem", ["pg", "npg"])
@pytest.mark.parametrize("bounds", [SYMMETRIC, Bounds(low=0.2, high=OFF), Bounds(low=1.0, high=0.28)])
def test_remainder_of_both_theorems_is_second_order(theorem: str, bounds: Bounds) -> None:
    terms = {"pg": policy_gradient_terms, "npg": natural_gradient_terms}[theorem]
    ratios, relative = remainder(theorem, lambda policy, old: terms(policy, old, bounds).change(1.0), bounds=bounds)
    ratios = ratios[ratios.isfinite()]  # a pair without a clipped action has no change and no remainder
    assert len(ratios) > 300
    assert 3.8 < ratios.median() < 4.2
    assert ratios.quantile(0.05) > 3
    assert relative[relative.isfinite()].median() < 0.05


@pytest.mark.parametrize("theorem", ["pg", "npg"])
def test_averages_under_the_old_policy_are_wrong(theorem: str) -> None:
    terms = {"pg": policy_gradient_terms, "npg": natural_gradient_terms}[theorem]
    ratios, relative = remainder(theorem, lambda policy, old: terms(policy, old, SYMMETRIC, measure=old).change(1.0))
    assert ratios.median() < 2.6
    assert relative.median() > 0.1


def test_without_the_cross_terms_it_is_wrong() -> None:
    """-E[h Q] alone, without E[Q] (p - q)."""

    def wrong(policy: Tensor, old: Tensor) -> Tensor:
        return -(policy * clip_direction(policy, old, SYMMETRIC) * q_values(policy)).sum(-1)

    ratios, _ = remainder("pg", wrong)
    assert ratios.median() < 2.6


def test_terms_are_the_expanded_theorem() -> None:
    """p (E[Q] - E[Q|X]) - q (E[Q] - E[Q|Y]) with conditional averages written out, per pair."""
    logits, old = pairs(100, 12)
    policy = logits.softmax(-1)
    low_set, high_set = clip_sets(policy, old, SYMMETRIC)
    keep = low_set.any(-1) & high_set.any(-1)
    policy, low_set, high_set, old = policy[keep], low_set[keep], high_set[keep], old[keep]
    pg, ng = policy_gradient_terms(policy, old, SYMMETRIC), natural_gradient_terms(policy, old, SYMMETRIC)
    assert len(policy) > 80

    def conditional(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        probability = (policy * chosen).sum(-1)
        return probability, (policy * chosen * values).sum(-1) / probability

    for chosen, pg_side, ng_side in ((low_set, pg.low, ng.low), (high_set, pg.high, ng.high)):
        probability, mean_q = conditional(q_values(policy), chosen)
        assert torch.allclose(pg_side, probability * (expected_q(policy) - mean_q), rtol=1e-10, atol=1e-14)
        probability, surprise = conditional(-policy.log(), chosen)
        assert torch.allclose(ng_side, probability * (surprise - entropy(policy)), rtol=1e-10, atol=1e-14)


# Identities (C4, C5, C9)


def test_expected_q_is_a_covariance_and_never_negative() -> None:
    policy = pairs(2000, 30)[0].softmax(-1)
    mean_p, mean_log = (policy * policy).sum(-1), (policy * policy.log()).sum(-1)
    covariance = (policy * policy * policy.log()).sum(-1) - mean_p * mean_log
    assert (expected_q(policy) - covariance).abs().max() < 1e-12
    assert expected_q(policy).min() >= -1e-12
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    assert expected_q(uniform).abs() < 1e-15


def test_unlikely_actions_satisfy_both_conditions() -> None:
    """-log pi >= H implies Q <= 0 <= E[Q]: the sufficient condition of (7) and of (8)."""
    policy = pairs(2000, 30)[0].softmax(-1)
    unlikely = -policy.log() >= entropy(policy)[:, None]
    assert 20_000 < unlikely.sum() < 60_000
    assert (q_values(policy)[unlikely] <= 0).all()
    assert (expected_q(policy) >= 0).all()


@pytest.mark.parametrize("delta", [0.7, -0.7, 3.0, 1e-6])
def test_natural_gradient_identity_is_exact(delta: float) -> None:
    logits, old = pairs(200, 20)
    policy = logits.softmax(-1)
    following = natural_gradient_step(logits, old, SYMMETRIC, delta)
    exact = entropy(following) - entropy(policy)
    assert (natural_gradient_change(policy, old, SYMMETRIC, delta) - exact).abs().max() < 1e-12
    assert kl_divergence(following, policy).min() >= -1e-15


def test_probability_of_the_sets_falls_with_the_bounds() -> None:
    logits, old = pairs(200, 30)
    policy = logits.softmax(-1)
    lows = [policy_gradient_terms(policy, old, Bounds(low=low, high=OFF)) for low in (0.0, 0.1, 0.2, 0.5, 1.0)]
    highs = [policy_gradient_terms(policy, old, Bounds(low=1.0, high=high)) for high in (0.0, 0.2, 0.5, 2.0, OFF)]
    for wide, narrow in itertools.pairwise(lows):
        assert (wide.low_probability >= narrow.low_probability).all()
    for wide, narrow in itertools.pairwise(highs):
        assert (wide.high_probability >= narrow.high_probability).all()
    assert lows[-1].low_probability.max() == 0
    assert highs[-1].high_probability.max() == 0


def test_which_actions_can_be_clipped() -> None:
    """X needs pi < 1 - low; Y needs pi_old < 1 / (1 + high): a token with pi_old >= 0.833 is never clip-high'd."""
    logits, old = random_pairs(2000, 4, old_scale=3.0, drift=1.0, seed=3)
    policy, old = logits.softmax(-1), old.softmax(-1)
    low_set, high_set = clip_sets(policy, old, SYMMETRIC)
    assert policy[low_set].max() < 0.8
    assert old[high_set].max() < 1 / 1.2
    assert (old >= 1 / 1.2).any()


# Golden vectors (W1, W3, C7a, C7c), eta 0.05, c 0.5


def worked(name: str) -> Worked:
    return work_case(next(case for case in CASES if case.name == name), 0.025)


def test_rare_token_falls() -> None:
    case = worked("rare token falls")
    assert (case.low_set, case.high_set) == ([2], [])
    assert case.pg_low == pytest.approx(0.02165807, abs=1e-8)
    assert case.pg_high == 0
    assert case.pg_predicted == pytest.approx(5.41451778e-4, abs=1e-10)
    assert case.pg_exact == pytest.approx(5.41469392e-4, abs=1e-10)
    assert case.ng_predicted == pytest.approx(2.96890637e-3, abs=1e-10)
    assert case.ng_exact == pytest.approx(2.97692875e-3, abs=1e-10)


def test_rare_tokens_fall_and_rise() -> None:
    case = worked("rare ones fall and rise")
    assert (case.low_set, case.high_set) == ([2], [3])
    assert case.pg_low == pytest.approx(0.02165807, abs=1e-8)
    assert case.pg_high == pytest.approx(0.01856600, abs=1e-8)
    assert case.pg_predicted == pytest.approx(7.73018075e-5, abs=1e-10)
    assert case.pg_exact == pytest.approx(7.74426418e-5, abs=1e-10)
    assert case.ng_predicted == pytest.approx(1.37433359e-4, abs=1e-10)
    assert case.ng_exact == pytest.approx(1.63017454e-4, abs=1e-10)


def test_clip_low_can_lower_entropy() -> None:
    policy = torch.tensor([0.7, 0.15, 0.15], dtype=torch.float64)
    assert entropy(policy).item() == pytest.approx(0.81880846, abs=1e-8)
    assert q_values(policy).tolist() == pytest.approx([0.32349346, -0.16174673, -0.16174673], abs=1e-8)
    assert expected_q(policy).item() == pytest.approx(0.17792140, abs=1e-8)
    case = worked("dominant token falls")
    assert case.low_set == [0]
    assert case.pg_low == pytest.approx(-0.10190044, abs=1e-8)
    assert case.pg_predicted == pytest.approx(-2.54751099e-3, abs=1e-10)
    assert case.pg_exact == pytest.approx(-2.54998978e-3, abs=1e-10)
    assert case.ng_predicted == pytest.approx(-8.08733646e-3, abs=1e-10)
    assert case.ng_exact == pytest.approx(-8.11186883e-3, abs=1e-10)


def test_clip_high_can_raise_entropy() -> None:
    """The same policy with the dominant token rising: the term of the case above with the opposite effect."""
    case = worked("dominant token rises")
    assert (case.low_set, case.high_set) == ([], [0])
    assert case.pg_high == pytest.approx(-0.10190044, abs=1e-8)
    assert case.pg_predicted == pytest.approx(+2.54751099e-3, abs=1e-10)
    assert case.pg_exact > 0
    assert case.ng_exact > 0


def test_the_two_conditions_are_independent() -> None:
    """Condition (7) holds and (8) does not: per p = 0.3757, +0.0182 against -0.160."""
    case = worked("the theorems disagree")
    assert case.low_set == [2]
    assert case.pg_low / 0.3757 == pytest.approx(0.0182, abs=5e-5)
    assert case.ng_low / 0.3757 == pytest.approx(-0.160, abs=5e-4)
    assert case.pg_exact > 0 > case.ng_exact


# Arbitrary advantages (C11)


@pytest.mark.parametrize("bounds", [SYMMETRIC, Bounds(low=0.2, high=0.28, dual=1.5)])
def test_entropy_budget_of_any_advantage(bounds: Bounds) -> None:
    logits, old = pairs(200, 20)
    policy = logits.softmax(-1)
    advantage = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    predicted = advantage_budget(policy, old, bounds, advantage)

    def error(eta: float) -> Tensor:
        after = advantage_step(logits, old, bounds, advantage=advantage, eta=eta)
        return entropy(after) - entropy(policy) - eta * predicted

    assert 3.7 < halving_ratios(error, (2e-2, 1e-2, 5e-3)).median() < 4.3


def test_budget_is_theorem_1_for_advantages_that_do_not_depend_on_the_action() -> None:
    logits, old = pairs(50, 20)
    policy = logits.softmax(-1)
    both = [advantage_budget(policy, old, SYMMETRIC, torch.full_like(policy, sign)) for sign in (1.0, -1.0)]
    theorem = policy_gradient_terms(policy, old, SYMMETRIC).change(0.5)
    assert torch.allclose((both[0] + both[1]) / 2, theorem, rtol=1e-10, atol=1e-14)


# Weight of a state (C12, C12b)


def make_tree() -> tuple[Tree, Tensor, Tensor]:
    logits, old = pairs(2, 6, seed=13)
    continues = torch.tensor([True, True, False, True, False, True])
    tree = Tree(first_old=old[0], second_old=old[1], continues=continues, bounds=SYMMETRIC)
    for state in range(2):
        direction = clip_direction(logits[state].softmax(-1), old[state], SYMMETRIC)
        assert {-1.0, 1.0} <= set(direction.tolist())
    return tree, logits[0], logits[1]


def test_a_states_weight_counts_the_episodes_length() -> None:
    tree, first, second = make_tree()
    numeric = central_difference(lambda at: tree.objective(first.softmax(-1), at.softmax(-1)), second)
    closed = tree.second_gradient(second.softmax(-1))
    largest = closed.abs().argmax()
    assert (numeric / closed)[largest].item() == pytest.approx(1.0, rel=1e-6)
    assert (numeric - closed).abs().max() < 1e-9
    # Visitation instead of w = d / 2 is off by a factor of two.
    assert (numeric * tree.visitation / tree.second_weight / closed)[largest].item() == pytest.approx(2.0, rel=1e-6)


def test_a_length_that_depends_on_the_action_weights_each_action() -> None:
    tree, first, second = make_tree()
    policy = first.softmax(-1)
    numeric = central_difference(lambda at: tree.objective(at.softmax(-1), second.softmax(-1)), first)
    assert (numeric - tree.first_gradient(policy)).abs().max() < 1e-8
    # No single number in place of E[1/T | a] gives the gradient: take the best one.
    scalar_form = surrogate_gradient(policy, tree.first_old, SYMMETRIC, 0.5)
    best = (numeric * scalar_form).sum() / scalar_form.square().sum()
    assert (numeric - best * scalar_form).abs().max() > 1e-3
