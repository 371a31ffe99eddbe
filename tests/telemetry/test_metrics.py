"""Merging laws, with an independent reference for every number."""

import itertools
import math
import pickle
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.telemetry.metrics import Histogram, Max, Mean, Min, Std, Sum, merge, to_values

numbers = st.floats(-1e6, 1e6)
batches = st.lists(st.lists(numbers, min_size=1, max_size=8), min_size=3, max_size=6)
EDGES = (-1e6, -10.0, 0.0, 1.0, 1e6)

BUILDERS = {
    "sum": lambda values: Sum(math.fsum(values)),
    "mean": Mean.of,
    "std": Std.of,
    "max": lambda values: Max(max(values)),
    "min": lambda values: Min(min(values)),
    "histogram": lambda values: Histogram.of(values, edges=EDGES),
}
REFERENCES = {
    "sum": math.fsum,
    "mean": statistics.fmean,
    "std": statistics.pstdev,
    "max": max,
    "min": min,
    "histogram": lambda values: Histogram.of(values, edges=EDGES).value,
}


@pytest.mark.parametrize("kind", BUILDERS)
@given(batches=batches)
def test_any_grouping_gives_the_value_of_all_numbers(kind: str, batches: list[list[float]]) -> None:
    parts = [BUILDERS[kind](batch) for batch in batches]
    left = parts[0]
    for part in parts[1:]:
        left = left + part
    right = parts[-1]
    for part in reversed(parts[:-1]):
        right = part + right
    expected = REFERENCES[kind](list(itertools.chain(*batches)))
    assert left.value == pytest.approx(expected, rel=1e-9, abs=1e-5)
    assert right.value == pytest.approx(expected, rel=1e-9, abs=1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
@given(batches=batches)
def test_merging_commutes(kind: str, batches: list[list[float]]) -> None:
    a, b = BUILDERS[kind](batches[0]), BUILDERS[kind](batches[1])
    assert (a + b).value == pytest.approx((b + a).value, rel=1e-12, abs=1e-9)


def test_mean_of_unequal_parts_is_the_mean_of_all_tokens() -> None:
    # 1 token of 10 and 3 tokens of 2: 16 / 4 = 4. A mean of means would say 6.
    assert (Mean(10.0, 1) + Mean(6.0, 3)).value == 4.0


def test_an_empty_part_is_neutral_and_its_value_is_nan() -> None:
    assert math.isnan(Mean().value)
    assert math.isnan(Std().value)
    assert math.isnan(Histogram((0.0, 1.0), (0.0,)).value)
    assert Mean() + Mean(6.0, 3) == Mean(6.0, 3)
    assert Std() + Std.of([1.0, 3.0]) == Std.of([1.0, 3.0]) == Std.of([1.0, 3.0]) + Std()
    assert Std.of([1.0, 3.0]).value == 1.0


@pytest.mark.parametrize("kind", [Max, Min])
def test_nan_survives_from_either_side(kind: type) -> None:
    assert math.isnan((kind(math.nan) + kind(1.0)).value)
    assert math.isnan((kind(1.0) + kind(math.nan)).value)


def test_histogram_bins_are_half_open_and_the_outer_ones_catch_the_rest() -> None:
    histogram = Histogram.of([-5.0, 0.0, 0.99, 1.0, 2.0, 9.0], edges=(0.0, 1.0, 2.0))
    assert histogram.counts == (3.0, 3.0)
    # The 3rd of 6 lies at the end of the first bin; the 4.5th in the middle of the second.
    assert histogram.value == 1.0
    assert histogram.quantile(0.75) == 1.5


def test_merge_keeps_names_that_only_one_part_has() -> None:
    merged = merge({"a": Mean(1.0, 1), "b": Max(2.0)}, {"a": Mean(5.0, 1)}, {})
    assert to_values(merged) == {"a": 3.0, "b": 2.0}


def test_merge_names_a_metric_of_two_types() -> None:
    with pytest.raises(TypeError, match=r"'actor/entropy' is a Mean in one part and a Sum in another"):
        merge({"actor/entropy": Mean(1.0, 1)}, {"actor/entropy": Sum(1.0)})
    with pytest.raises(TypeError):
        Mean(1.0, 1) + Max(1.0)  # type: ignore[operator]


def test_histograms_of_other_edges_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different edges"):
        Histogram((0.0, 1.0), (1.0,)) + Histogram((0.0, 2.0), (1.0,))
    with pytest.raises(ValueError, match="rise strictly"):
        Histogram((1.0, 1.0), (0.0,))


@pytest.mark.parametrize("kind", BUILDERS)
def test_metrics_travel_between_processes(kind: str) -> None:
    metric = BUILDERS[kind]([1.0, 2.5])
    assert pickle.loads(pickle.dumps(metric)) == metric
