"""Merging laws, with an independent reference for every number."""

import itertools
import math
import pickle
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.telemetry.metrics import Last, Max, Mean, Metric, Min, Std, Sum, Values, declared, merge, to_values
from megarl.telemetry.names import DESCRIPTIONS, MERGES

numbers = st.floats(-1e6, 1e6)
batches = st.lists(st.lists(numbers, min_size=1, max_size=8), min_size=3, max_size=6)

BUILDERS = {
    "sum": Sum.of,
    "mean": Mean.of,
    "std": Std.of,
    "max": Max.of,
    "min": Min.of,
}
REFERENCES = {
    "sum": math.fsum,
    "mean": statistics.fmean,
    "std": statistics.pstdev,
    "max": max,
    "min": min,
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
    assert Mean() + Mean(6.0, 3) == Mean(6.0, 3)
    assert Std() + Std.of([1.0, 3.0]) == Std.of([1.0, 3.0]) == Std.of([1.0, 3.0]) + Std()
    assert Std.of([1.0, 3.0]).value == 1.0


@pytest.mark.parametrize("kind", [Max, Min])
def test_nan_survives_from_either_side(kind: type) -> None:
    assert math.isnan((kind(math.nan) + kind(1.0)).value)
    assert math.isnan((kind(1.0) + kind(math.nan)).value)


def test_the_last_is_the_one_merged_later() -> None:
    assert Last(3.0) + Last(1.0) + Last(2.0) == Last.of([3.0, 1.0, 2.0]) == Last(2.0)
    with pytest.raises(TypeError):
        Last(1.0) + Max(1.0)  # type: ignore[operator]


def test_merge_keeps_names_that_only_one_part_has() -> None:
    merged = merge({"a": Mean(1.0, 1), "b": Max(2.0)}, {"a": Mean(5.0, 1)}, {})
    assert to_values(merged) == {"a": 3.0, "b": 2.0}


def test_merge_names_a_metric_of_two_types() -> None:
    with pytest.raises(TypeError, match=r"'own/entropy' is a Mean in one part and a Sum in another"):
        merge({"own/entropy": Mean(1.0, 1)}, {"own/entropy": Sum(1.0)})
    with pytest.raises(TypeError):
        Mean(1.0, 1) + Max(1.0)  # type: ignore[operator]


MERGED = {  # of 3 from one source, then 1 from another
    "sum": ("publish/bytes", Sum(4.0)),
    "mean": ("actor/grad_norm", Mean(4.0, 2.0)),
    "std": ("reward/std", Std(2.0, 2.0, 2.0)),
    "max": ("timing_s/publish_wire", Max(3.0)),
    "min": ("actor/ratio_min", Min(1.0)),
    "last": ("control/positive_scale", Last(1.0)),
}


def test_every_way_of_merging_is_declared_by_some_metric() -> None:
    assert set(MERGES.values()) == set(MERGED)
    assert set(MERGES) == set(DESCRIPTIONS)


@pytest.mark.parametrize("how", MERGED)
def test_a_metric_merges_as_its_name_declares(how: str) -> None:
    name, expected = MERGED[how]
    assert MERGES[name] == how
    assert merge(declared({name: 3.0}), declared({name: 1.0})) == {name: expected}


def test_sums_and_counts_of_a_mean_stay_apart() -> None:
    assert merge(declared({"actor/entropy": 10.0}), declared({"actor/entropy": Mean(6.0, 3.0)})) == {
        "actor/entropy": Mean(16.0, 4.0)
    }


def test_seconds_of_ranks_and_engines_are_the_slowests() -> None:
    """What sources do side by side does not add up; what one process does in a step does."""
    assert {name for name, how in MERGES.items() if name.startswith("timing_s/") and how == "max"} == {
        name for name in MERGES if "slowest" in DESCRIPTIONS[name]
    }
    assert {how for name, how in MERGES.items() if name.startswith("timing_s/")} == {"max", "sum"}


@pytest.mark.parametrize("metric", [Mean(3.0, 1.0), Sum(3.0), Last(3.0)])
def test_a_metric_of_another_type_than_declared_is_refused(metric: Metric) -> None:
    message = (
        f"metric 'timing_s/publish_wire' is a {type(metric).__name__}, but telemetry/names.py declares that it merges "
        'as "max": make it a Max, as `declared` does'
    )
    for use in (merge, to_values):
        with pytest.raises(TypeError) as caught:
            use({"timing_s/publish_wire": metric})
        assert str(caught.value) == message


@pytest.mark.parametrize("values", [1.0, [1.0, 2.0], Mean(3.0, 2.0)], ids=str)
def test_a_name_that_is_not_declared_has_no_metric(values: Values) -> None:
    with pytest.raises(KeyError, match=r"metric 'actor/entropie' is not declared in telemetry/names.py"):
        declared({"actor/entropie": values})


SEVERAL = {  # of 3, 1 and 2
    "publish/bytes": Sum(6.0),
    "actor/grad_norm": Mean(6.0, 3.0),
    "reward/std": Std(3.0, 2.0, 2.0),
    "timing_s/publish_wire": Max(3.0),
    "actor/ratio_min": Min(1.0),
    "control/positive_scale": Last(2.0),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_values_of_a_name_are_one_metric(name: str) -> None:
    assert declared({name: [3.0, 1.0, 2.0]}) == declared({name: iter((3, 1, 2))}) == {name: SEVERAL[name]}


def test_a_sum_with_its_count_is_a_means_alone() -> None:
    assert declared({"actor/entropy": Mean(6.0, 3.0)}) == {"actor/entropy": Mean(6.0, 3.0)}
    for name, metric in SEVERAL.items():
        if not isinstance(metric, Mean):
            with pytest.raises(TypeError, match=rf"metric '{name}' is a Mean"):
                declared({name: Mean(6.0, 3.0)})


@pytest.mark.parametrize("kind", BUILDERS)
def test_metrics_travel_between_processes(kind: str) -> None:
    metric = BUILDERS[kind]([1.0, 2.5])
    assert pickle.loads(pickle.dumps(metric)) == metric
