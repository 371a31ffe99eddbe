"""Intervals over seeds: Student's numbers, right as often as they say, and narrow where runs share a seed."""

import math

import numpy as np
import pytest

from megarl.ablation.seeds import SeedMean, mean_over_seeds, paired_difference, t_quantile

SCIPY = {  # scipy.stats.t.ppf((1 + level) / 2, freedom), scipy 1.17.1
    (1, 0.9): 6.3137515147,
    (1, 0.95): 12.7062047362,
    (1, 0.99): 63.6567411629,
    (2, 0.95): 4.3026527297,
    (3, 0.95): 3.1824463053,
    (4, 0.95): 2.7764451052,
    (7, 0.9): 1.8945786051,
    (7, 0.95): 2.3646242516,
    (8, 0.99): 3.3553873313,
    (30, 0.95): 2.0422724563,
    (101, 0.95): 1.9837310037,
}


@pytest.mark.parametrize(("freedom", "level"), SCIPY)
def test_quantiles_of_t(freedom: int, level: float) -> None:
    assert t_quantile(freedom, level) == pytest.approx(SCIPY[freedom, level], rel=1e-9)


def test_quantiles_approach_those_of_the_normal() -> None:
    assert t_quantile(100_001, 0.95) == pytest.approx(1.959964, rel=1e-4)
    for freedom, level in ((0, 0.95), (3, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="expected degrees of freedom"):
            t_quantile(freedom, level)


def test_a_mean_by_hand() -> None:
    """Of 0.62, 0.71, 0.55: mean 1.88 / 3; squares (0.0067)^2 + (0.0833)^2 + (0.0767)^2 = 0.012867, deviation 0.080208,
    times 4.302653 / sqrt(3). scipy.stats.t.interval gives the same."""
    found = mean_over_seeds([0.62, 0.71, 0.55])
    assert (found.value, found.n) == (pytest.approx(0.6266666667), 3)
    assert found.half_width == pytest.approx(0.1992478735, rel=1e-8)
    assert found.as_json() == {
        "value": found.value,
        "half_width": found.half_width,
        "low": pytest.approx(0.4274187932, rel=1e-8),
        "high": pytest.approx(0.8259145402, rel=1e-8),
        "n": 3,
    }


def test_a_paired_difference_by_hand() -> None:
    """0.02, 0.05, 0.03; scipy.stats.ttest_rel(...).confidence_interval() gives the same."""
    found = paired_difference({0: 0.62, 1: 0.71, 2: 0.55}, {2: 0.52, 0: 0.60, 1: 0.66})
    assert found is not None
    assert (found.value, found.half_width) == (pytest.approx(0.1 / 3), pytest.approx(0.0379458303, rel=1e-8))
    assert not found.excludes_zero
    assert mean_over_seeds([0.02, 0.05, 0.03], level=0.9).excludes_zero


def test_one_seed_has_no_interval() -> None:
    found = mean_over_seeds([0.4])
    assert found == SeedMean(value=0.4, half_width=None, n=1)
    assert not found.excludes_zero
    assert found.as_json() == {"value": 0.4, "half_width": None, "low": None, "high": None, "n": 1}


def test_only_shared_seeds_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 100.0}, {0: 0.5, 1: 1.0, 7: -100.0})
    assert found is not None
    assert (found.value, found.n) == (0.75, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        mean_over_seeds(values)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(n: int) -> None:
    """4000 ablations of n seeds; with the normal's 1.96 in place of Student's, 3 seeds would be right in 81 %."""
    drawn = np.random.default_rng(n).normal(0.7, 0.05, size=(4000, n))
    found = [mean_over_seeds(row) for row in drawn.tolist()]
    covered = np.mean([abs(one.value - 0.7) <= (one.half_width or 0.0) for one in found])
    assert 0.93 <= covered <= 0.97


def test_pairing_takes_away_what_a_seed_does_to_both() -> None:
    """Seeds move both settings by 0.1, each run by 0.01 more; the setting is better by 0.05. Paired, the interval is
    some seven times narrower than that of two means, tells them apart, and is right as often as it says."""
    generator = np.random.default_rng(1)
    covered, narrower, told, told_unpaired = [], [], [], []
    for _ in range(2000):
        of_seed = generator.normal(0.5, 0.1, size=5)
        control = of_seed + generator.normal(0, 0.01, size=5)
        setting = of_seed + 0.05 + generator.normal(0, 0.01, size=5)
        found = paired_difference(dict(enumerate(setting.tolist())), dict(enumerate(control.tolist())))
        assert found is not None
        assert found.half_width is not None
        unpaired = t_quantile(8, 0.95) * math.sqrt((setting.var(ddof=1) + control.var(ddof=1)) / 5)
        covered.append(abs(found.value - 0.05) <= found.half_width)
        narrower.append(unpaired / found.half_width)
        told.append(found.excludes_zero)
        told_unpaired.append(abs(found.value) > unpaired)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.median(narrower) > 5
    assert np.mean(told) > 0.95
    assert np.mean(told_unpaired) < 0.1
