"""Advantages against hand-computed numbers, and the laws of a group."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.advantage import (
    DrGrpo,
    Grpo,
    PerplexityBonus,
    QuantileAdvantage,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
    SmoothedAdvantage,
)
from megarl.objective.advantage import AdvantageHistory, compute_advantages, compute_perplexity_bonus
from megarl.records import as_floats

REWARDS = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=20)
RLOO = Rloo(method="rloo")
WHITENED = ReinforcePlusPlus(method="reinforce_pp")
CENTRED = ReinforcePlusPlusBaseline(method="reinforce_pp_baseline")
SMOOTHED = SmoothedAdvantage(method="smoothed", eps=0.0)


def quantile(k: float) -> QuantileAdvantage:
    return QuantileAdvantage(method="quantile", quantile=k, eps=0.0)


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


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    assert compute_advantages(RLOO, [1, 0, 0, 4], [0] * 4) == pytest.approx([1 - 4 / 3, -5 / 3, -5 / 3, 4 - 1 / 3])


def test_quantile_baseline_is_one_of_the_rewards() -> None:
    """QAE with p = 0.625, G = 8, K = 0.4: b is the 4th smallest, 1; linear interpolation would say 0.8."""
    rewards = [1, 0, 1, 0, 1, 0, 1, 1]
    std = math.sqrt(0.625 * 0.375 * 8 / 7)
    expected = [0.0 if reward else -1 / std for reward in rewards]
    assert compute_advantages(quantile(0.4), rewards, [0] * 8) == pytest.approx(expected)
    # A hard prompt: b = 0, so only the rare success is reinforced.
    assert compute_advantages(quantile(0.4), [0, 0, 0, 1], [0] * 4) == pytest.approx([0, 0, 0, 2.0])


@pytest.mark.parametrize(
    ("k", "size", "rank"),
    [(0.4, 5, 2), (0.7, 10, 7), (0.1, 3, 1), (0.29, 100, 29), (0.6, 5, 3), (0.5, 3, 2), (0.999, 4, 4)],
)
def test_quantile_rank_is_exact(k, size, rank) -> None:
    """ceil(K G) of the numbers as written: 0.7 * 10 is 7.000000000000001 in floating point."""
    rewards = [float(i) for i in range(size)]
    advantages = compute_advantages(quantile(k), rewards, [0] * size)
    assert advantages.index(0.0) == rank - 1
    # The definition: the smallest x with at least the share K at or below it.
    assert advantages.index(0.0) == np.quantile(np.arange(size), k, method="inverted_cdf")


def test_whitening_counts_tokens() -> None:
    # Mean (1 + 0 * 3) / 4 = 0.25, variance (0.5625 + 3 * 0.0625) / 4 = 0.1875.
    advantages = compute_advantages(WHITENED, [1, 0], [0, 1], response_lengths=[1, 3])
    assert advantages == pytest.approx([0.75 / math.sqrt(0.1875), -0.25 / math.sqrt(0.1875)])
    # The same by spelling the tokens out.
    rewards, lengths = [1.0, 0.0, 3.0, -2.0, 0.5], [2, 7, 1, 4, 3]
    tokens = np.repeat(rewards, lengths)
    expected = (np.array(rewards) - tokens.mean()) / tokens.std()
    assert compute_advantages(WHITENED, rewards, [0] * 5, response_lengths=lengths) == pytest.approx(expected)


def test_whitening_after_the_group_baseline() -> None:
    # Centred 0.5, -0.5 | 0, 0; tokens 1, 3 | 2, 2: mean -1/8, variance 7/64.
    advantages = compute_advantages(CENTRED, [1, 0, 1, 1], [0, 0, 1, 1], response_lengths=[1, 3, 2, 2])
    scale = math.sqrt(7 / 64)
    assert advantages == pytest.approx([0.625 / scale, -0.375 / scale, 0.125 / scale, 0.125 / scale])


def test_whitening_has_a_smallest_variance_and_ignores_empty_responses() -> None:
    advantages = compute_advantages(WHITENED, [1e-6, -1e-6], [0, 0], response_lengths=[5, 5])
    assert advantages == pytest.approx([1e-2, -1e-2])
    assert compute_advantages(WHITENED, [0.1, 0.1, 9], [0] * 3, response_lengths=[3, 4, 0]) == [0.0] * 3
    assert compute_advantages(WHITENED, [0.1] * 7, [0] * 7, response_lengths=[3] * 7) == [0.0] * 7


def test_smoothed_by_hand_over_three_visits() -> None:
    history = AdvantageHistory()

    def visit(rewards: list[float]) -> list[float]:
        size = len(rewards)
        return compute_advantages(SMOOTHED, rewards, [0] * size, problems=["5"] * size, history=history)

    # First visit: both standardisations are the group's (mean 0.25, std 0.5).
    assert visit([1, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5])
    # Second: group mean 0.5, s^2 1/3; over both visits mean 0.375, variance (0.25 + 1/3 + 0.25^2 / 2) / 2.
    group, total = math.sqrt(1 / 3), math.sqrt((0.25 + 1 / 3 + 0.03125) / 2)
    up, down = (0.5 / group + 0.625 / total) / 2, (-0.5 / group - 0.375 / total) / 2
    assert visit([1, 1, 0, 0]) == pytest.approx([up, up, down, down])
    # Third: no spread in the group, mean 0.375 + 0.625 / 3 over all, variance 0.875 / 3; the smaller of A'/3 and 2A'/3.
    assert visit([1, 1, 1, 1]) == pytest.approx([(1 - 0.375 - 0.625 / 3) / math.sqrt(0.875 / 3) / 3] * 4)


def test_smoothed_takes_the_smaller_and_counts_prompts_apart() -> None:
    history = AdvantageHistory()
    rewards, groups, prompts = [1.0, 0.0, 0.1, 0.1, 0.1], [0, 0, 1, 1, 1], ["3", "3", "4", "4", "4"]
    for _ in range(4):
        last = compute_advantages(SMOOTHED, rewards, groups, problems=prompts, history=history)
    assert history.state_dict()["3"][0] == 4
    # The same group again and again: its own and the total statistics agree, and a prompt without spread stays at 0.
    assert last == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 0, 0, 0])
    assert last[2:] == [0.0] * 3


def test_history_goes_on_from_its_state() -> None:
    straight, saved = AdvantageHistory(), AdvantageHistory()
    generator = np.random.default_rng(0)
    batches = [generator.random(8).tolist() for _ in range(6)]

    def run(history: AdvantageHistory, rewards: list[float]) -> list[float]:
        groups = [0, 0, 0, 1, 1, 1, 2, 2]
        # Groups 0 and 2 state the same problem, drawn twice in one step.
        prompts = [("9", "1", "9")[group] for group in groups]
        return compute_advantages(SMOOTHED, rewards, groups, problems=prompts, history=history)

    for rewards in batches[:3]:
        assert run(straight, rewards) == run(saved, rewards)
    resumed = AdvantageHistory()
    resumed.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    for rewards in batches[3:]:
        assert run(straight, rewards) == run(resumed, rewards)
    assert straight.state_dict() == resumed.state_dict()
    assert straight.state_dict()["9"][0] == 12


ALONE = [DrGrpo(), Grpo(method="grpo"), Grpo(method="grpo", eps=0.0), RLOO, quantile(0.4), SMOOTHED]


@pytest.mark.parametrize("config", ALONE)
@pytest.mark.parametrize("rewards", [[3.0], [0.1] * 3, [0.1] * 7, [1e9 + 0.1] * 6, [0.1 + 0.2, 0.3, 0.3]])
def test_group_without_spread_has_exactly_zero(config, rewards) -> None:
    size = len(rewards)
    advantages = compute_advantages(config, rewards, [0] * size, problems=["0"] * size, history=AdvantageHistory())
    assert advantages == [0.0] * size


@settings(max_examples=100, deadline=None)
@given(rewards=REWARDS, seed=st.randoms(use_true_random=False))
def test_order_of_the_batch_changes_nothing(rewards, seed) -> None:
    groups = [index % 3 for index in range(len(rewards))]
    lengths = [1 + index * 7 % 5 for index in range(len(rewards))]
    order = list(range(len(rewards)))
    seed.shuffle(order)
    for config in (DrGrpo(), Grpo(method="grpo"), RLOO, quantile(0.4), WHITENED, CENTRED, SMOOTHED):

        def run(places, config=config):
            return compute_advantages(
                config,
                [rewards[i] for i in places],
                [groups[i] for i in places],
                response_lengths=[lengths[i] for i in places],
                problems=[str(groups[i]) for i in places],
                history=AdvantageHistory(),
            )

        straight = run(range(len(rewards)))
        assert run(order) == [straight[i] for i in order]
        if config in (DrGrpo(), RLOO):
            for group in range(3):
                of_group = [a for a, g in zip(straight, groups, strict=True) if g == group]
                assert math.fsum(of_group) == pytest.approx(0, abs=1e-9)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rewards but 1 group ids"):
        compute_advantages(DrGrpo(), [1.0, 2.0], [0])
    with pytest.raises(ValueError, match=r"response 1 \(group 4\)"):
        compute_advantages(DrGrpo(), [1.0, math.nan], [0, 4])
    with pytest.raises(
        ValueError, match="reinforce_pp needs response_lengths, one per response: expected 2, found none"
    ):
        compute_advantages(WHITENED, [1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="expected 2, found 1"):
        compute_advantages(CENTRED, [1.0, 2.0], [0, 0], response_lengths=[3])
    with pytest.raises(ValueError, match="smoothed needs a history"):
        compute_advantages(SMOOTHED, [1.0, 2.0], [0, 0], problems=["0", "0"])


def test_no_rewards() -> None:
    assert compute_advantages(DrGrpo(), [], []) == []
    assert compute_advantages(WHITENED, [], [], response_lengths=[]) == []


def test_perplexity_bonus_by_hand() -> None:
    bonus = PerplexityBonus(alpha=0.5, kappa=4.0)
    # B = 2, alpha B = 1; |R| / kappa = 0.25 binds.
    assert compute_perplexity_bonus(bonus, 1.0, as_floats([-1.0, -3.0]), omega=0.8) == pytest.approx(0.2)
    # B = 0.2, alpha B = 0.1.
    assert compute_perplexity_bonus(bonus, 1.0, as_floats([-0.1, -0.3]), omega=1.0) == pytest.approx(0.1)
    # Wrong answers of reward 0 get nothing, those of reward -1 up to 1 / kappa; an empty response has no surprise.
    assert compute_perplexity_bonus(bonus, 0.0, as_floats([-1.0]), omega=1.0) == 0.0
    assert compute_perplexity_bonus(bonus, -1.0, as_floats([-9.0]), omega=1.0) == pytest.approx(0.25)
    assert compute_perplexity_bonus(bonus, 1.0, as_floats([]), omega=1.0) == 0.0
