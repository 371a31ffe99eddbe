"""Group advantages against hand-computed numbers, and the laws of a group."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.objective import DrGrpo, Grpo
from megarl.objective.advantage import compute_advantages

REWARDS = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=20)


def test_dr_grpo_subtracts_the_group_mean() -> None:
    # Group 7 is (1, 0, 0, 1) scattered among group 3's (2, 5).
    advantages = compute_advantages(DrGrpo(), [1, 2, 0, 0, 5, 1], [7, 3, 7, 7, 3, 7])
    assert advantages == [0.5, -1.5, -0.5, -0.5, 1.5, 0.5]


def test_grpo_divides_by_the_standard_deviation_with_bessels_correction() -> None:
    # mean 0.25, squared deviations 3 * 0.0625 + 0.5625 = 0.75, / 3 = 0.25, std 0.5.
    advantages = compute_advantages(Grpo(method="grpo", eps=0.0), [1, 0, 0, 0], [0] * 4)
    assert advantages == [1.5, -0.5, -0.5, -0.5]
    with_eps = compute_advantages(Grpo(method="grpo", eps=0.5), [1, 0, 0, 0], [0] * 4)
    assert with_eps == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("config", [DrGrpo(), Grpo(method="grpo"), Grpo(method="grpo", eps=0.0)])
@pytest.mark.parametrize("rewards", [[3.0], [0.1] * 3, [0.1] * 7, [1e9 + 0.1] * 6])
def test_group_without_spread_has_exactly_zero(config, rewards) -> None:
    assert compute_advantages(config, rewards, [0] * len(rewards)) == [0.0] * len(rewards)


@settings(max_examples=100, deadline=None)
@given(rewards=REWARDS, seed=st.randoms(use_true_random=False))
def test_order_of_the_batch_changes_nothing(rewards, seed) -> None:
    groups = [index % 3 for index in range(len(rewards))]
    order = list(range(len(rewards)))
    seed.shuffle(order)
    for config in (DrGrpo(), Grpo(method="grpo")):
        straight = compute_advantages(config, rewards, groups)
        shuffled = compute_advantages(config, [rewards[i] for i in order], [groups[i] for i in order])
        assert shuffled == [straight[i] for i in order]
        for group in range(3):
            assert math.fsum(a for a, g in zip(straight, groups, strict=True) if g == group) == pytest.approx(
                0, abs=1e-9
            )


def test_bad_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rewards but 1 group ids"):
        compute_advantages(DrGrpo(), [1.0, 2.0], [0])
    with pytest.raises(ValueError, match=r"response 1 \(group 4\)"):
        compute_advantages(DrGrpo(), [1.0, math.nan], [0, 4])


def test_no_rewards() -> None:
    assert compute_advantages(DrGrpo(), [], []) == []
