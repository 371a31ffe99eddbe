"""Thinning keeps extremes; means and intervals over seeds with numbers from tables; scales and their ticks."""

import numpy as np
import pytest

from megarl.report.figure import Line
from megarl.report.scales import format_tick, integer_scale, linear_scale, log_scale
from megarl.report.seeds import interval, on_common_steps
from megarl.report.thinning import FEWEST_VALUES, MOST_VALUES, kept_indices, thin_line, values_per_line


@pytest.mark.parametrize("seed", range(20))
def test_extremes_and_ends_stay_where_they_were(seed: int) -> None:
    y = np.random.default_rng(seed).standard_normal(1000)
    y[seed::37] = np.nan
    line = Line(label="x", x=np.arange(1000.0), y=y, colour="blue")
    thin = thin_line(line, 50)
    assert len(thin.x) <= 52
    for extreme in (np.nanargmin(y), np.nanargmax(y)):
        assert y[extreme] in thin.y
        assert thin.x[list(thin.y).index(y[extreme])] == extreme
    assert (thin.x[0], thin.x[-1]) == (0, 999)
    np.testing.assert_array_equal(thin.y, y[thin.x.astype(int)])


def test_every_part_keeps_its_own_extremes_and_a_gap() -> None:
    y = np.array([0.0, 5.0, 1.0, 2.0, np.nan, np.nan, np.nan, np.nan, 3.0, 3.0, -7.0, 4.0])
    assert kept_indices(y, 6).tolist() == [0, 1, 4, 10, 11]
    assert kept_indices(y, 12).tolist() == list(range(12))


def test_a_band_reaches_as_far_as_before_it_was_thinned() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal(500)
    low, high = y - rng.random(500), y + rng.random(500)
    thin = thin_line(Line(label="x", x=np.arange(500.0), y=y, low=low, high=high, colour="blue"), 40)
    assert thin.low is not None
    assert thin.high is not None
    assert (thin.low.min(), thin.high.max()) == (low.min(), high.max())
    for step in range(500):  # at one of the two neighbours that stay
        after = int(np.searchsorted(thin.x, step))
        around = slice(max(after - 1, 0), after + 1)
        assert thin.low[around].min() <= low[step]
        assert thin.high[around].max() >= high[step]


def test_few_lines_have_more_values_than_many() -> None:
    assert [values_per_line(count) for count in (0, 1, 10, 20, 1000)] == [MOST_VALUES] * 3 + [200, FEWEST_VALUES]


def test_the_interval_over_seeds_by_hand() -> None:
    mean, low, high = interval(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2.0, 2.0]
    # Deviation sqrt(2), over sqrt(2) runs: 1 standard error.
    assert (high - mean).tolist() == pytest.approx([12.7062, 0.0], abs=5e-4)
    assert (mean - low).tolist() == pytest.approx([12.7062, 0.0], abs=5e-4)
    assert np.isnan(interval(np.array([[1.0, 2.0]]))[1]).all()


def test_the_mean_is_over_steps_that_all_runs_have() -> None:
    steps, values = on_common_steps(
        [(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])), (np.array([2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0]))]
    )
    assert steps.tolist() == [2.0, 3.0]
    assert values.tolist() == [[2.0, 3.0], [5.0, 6.0]]


def test_scales_by_hand() -> None:
    scale = linear_scale(0.0, 0.83, start=100.0, end=0.0, count=4)
    assert scale.ticks == (0.0, 0.5, 1.0)
    assert (scale(0.0), scale(0.5), scale(1.0)) == (100.0, 50.0, 0.0)
    assert scale.labels() == ["0", "0.5", "1.0"]
    powers = log_scale(0.002, 30.0, start=0.0, end=5.0)
    assert powers.ticks == pytest.approx((0.001, 0.01, 0.1, 1.0, 10.0, 100.0))
    assert powers(1.0) == pytest.approx(3.0)
    halves = log_scale(0.12, 4.0, start=0.0, end=1.0, base=2, nice=False, most=10)
    assert halves.labels() == ["0.125", "0.25", "0.5", "1", "2", "4"]
    assert log_scale(0.9, 1.05, start=0.0, end=1.0, base=2, nice=False).labels() == ["0.9", "0.95", "1", "1.05"]
    steps = integer_scale(1.0, 12.0, start=0.0, end=12.0, count=6)
    assert steps.ticks == (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    assert (steps(0.5), steps(12.5)) == (0.0, 12.0)
    assert integer_scale(7.0, 7.0, start=0.0, end=1.0, count=6).ticks == (7.0,)


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ((0.0, 2e-5, 4e-5), ["0", "2e-5", "4e-5"]),
        ((-0.02, 0.0, 0.02), ["−0.02", "0", "0.02"]),
        ((0.0, 2000.0, 4000.0), ["0", "2,000", "4,000"]),
        ((0.01, 0.1, 1.0, 10.0, 100.0), ["0.01", "0.1", "1", "10", "100"]),
    ],
)
def test_ticks_are_as_short_as_tells_them_apart(ticks: tuple[float, ...], labels: list[str]) -> None:
    assert [format_tick(tick, ticks) for tick in ticks] == labels
