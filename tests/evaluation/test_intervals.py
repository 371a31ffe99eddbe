"""Intervals over problems: those of all resamples, right as often as they say, and narrow where paired."""

import itertools

import numpy as np
import pytest

from megarl.evaluation.estimators import pass_at_k
from megarl.evaluation.intervals import estimate, estimate_difference


def test_interval_is_that_of_all_resamples() -> None:
    """Four problems have 256 resamples: the percentiles of their means, which the drawn ones approach."""
    values = np.array([0.0, 0.3, 0.35, 1.0])
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    (found,) = estimate(values[:, None], resamples=200_000)
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_interval_of_pass_at_k_covers_the_truth_as_often_as_it_says() -> None:
    """120 problems with success probabilities from a Beta, 8 responses each, 300 times over: 95 % of the intervals hold
    the population's pass@4, which is E[1 - (1 - p)^4] = 1 - E[(1 - p)^4]."""
    generator = np.random.default_rng(3)
    a, b = 1.0, 3.0
    truth = 1 - np.prod([(b + i) / (a + b + i) for i in range(4)])
    covered = 0
    for _ in range(300):
        solved = generator.random((120, 8)) < generator.beta(a, b, size=120)[:, None]
        (found,) = estimate(pass_at_k(solved)[:, 3:4], resamples=1000)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_paired_interval_is_narrow_where_problems_differ_more_than_models() -> None:
    """Problems from hopeless to trivial; the trained model is better by 0.04 on each. Resampled for themselves the
    models cannot be told apart; paired they can, and the interval is right as often as it says."""
    generator = np.random.default_rng(4)
    covered, told_paired, told_unpaired = 0, 0, 0
    for _ in range(200):
        difficulty = generator.uniform(0.0, 0.95, size=(100, 1))
        base = generator.binomial(64, difficulty) / 64
        trained = generator.binomial(64, difficulty + 0.04) / 64
        (paired,) = estimate_difference(trained, base, resamples=500)
        (unpaired,) = estimate_difference(trained, base, paired=False, resamples=500)
        assert paired.value == pytest.approx(unpaired.value)
        covered += paired.low <= 0.04 <= paired.high
        told_paired += paired.low > 0
        told_unpaired += unpaired.low > 0
    assert 0.9 <= covered / 200 <= 0.99
    assert told_paired / 200 > 0.9
    assert told_unpaired / 200 < 0.3


def test_columns_see_the_same_problems() -> None:
    values = np.random.default_rng(5).random((30, 1))
    once, twice = estimate(np.hstack([values, 2 * values]))
    assert (2 * once.low, 2 * once.high) == pytest.approx((twice.low, twice.high))
    assert estimate(values) == estimate(values)


def test_one_problem_and_equal_problems_have_no_width() -> None:
    (found,) = estimate(np.full((1, 1), 0.25))
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    (found,) = estimate(np.full((7, 1), 0.5))
    assert (found.low, found.high) == (0.5, 0.5)


def test_values_that_are_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="expected values of shape"):
        estimate(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="expected the same problems"):
        estimate_difference(np.zeros((3, 1)), np.zeros((4, 1)))
