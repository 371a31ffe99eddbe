"""How well a target is followed, on runs with known numbers."""

from dataclasses import replace

import numpy as np
import pytest
from results.holding import (
    LoopUpdates,
    averaged,
    changes_of_steps,
    changes_of_updates,
    estimate_bias,
    fit_change,
    hold_of,
    reach_of,
    relative_errors,
    settling_steps,
)

STEPS = np.arange(1.0, 10.0)


def test_an_entropy_is_held_against_the_target_of_the_step_before_it() -> None:
    before, target = np.array([1.0, 1.2, 0.9]), np.array([1.0, 2.0, 7.0])
    np.testing.assert_allclose(relative_errors(before, target), [0.2, -0.55])


def test_errors_count_after_the_settling_steps() -> None:
    errors = np.array([0.9, -0.5, 0.0, 0.3, -0.2, 0.0, 0.05, -0.1, 0.0])
    assert settling_steps(10) == 2
    found = hold_of(STEPS, errors, total_steps=10)
    assert found.rms == pytest.approx(np.sqrt((0.09 + 0.04 + 0.0025 + 0.01) / 7))
    assert (found.largest, found.bias) == (pytest.approx(0.3), pytest.approx(0.05 / 7))
    assert found.share_near == pytest.approx(5 / 7)
    assert found.reached == 6  # steps 4 and 5 were far


@pytest.mark.parametrize(("last", "reached"), [(0.0, 1), (0.11, None), (0.09, 1)])
def test_when_the_target_is_reached_for_good(last: float, reached: int | None) -> None:
    errors = np.zeros(9)
    errors[-1] = last
    assert hold_of(STEPS, errors, total_steps=10).reached == reached


def test_a_run_that_is_all_settling_is_refused() -> None:
    with pytest.raises(ValueError, match="no error after step 2 of 10; found 2"):
        hold_of(STEPS[:2], np.zeros(2), total_steps=10)


def loop(**columns: list[float]) -> LoopUpdates:
    """Two steps of three updates each."""
    named = {f"{name}_U": np.array(values) for name, values in columns.items()}
    plain = LoopUpdates(step_U=np.array([1, 1, 1, 2, 2, 2]), **{
        f"{name}_U": np.zeros(6) for name in ("knob", "wanted", "predicted", "measured", "entropy")
    })  # fmt: skip
    return replace(plain, **named)


def test_what_bounds_could_not_give_is_counted_where_they_steer() -> None:
    run = loop(
        knob=[1.0, 1.0, 0.5, 1.0, 0.0, 1.0],
        wanted=[0.9, 0.5, 0.1, 0.9, -0.5, 0.3],
        predicted=[0.0, 0.1, 0.11, 0.0, -0.2, 0.3],
        measured=[0.0, 0.1, 0.11, 0.25, -0.2, 0.3],
    )
    found = reach_of([run], band=0.02)
    assert (found.num_updates, found.at_raising_end, found.at_lowering_end) == (4, 0.5, 0.25)
    assert (found.short_of_raise, found.short_of_fall) == (0.25, 0.25)
    assert found.shortfall == pytest.approx((0.4 - 0.01 - 0.3 + 0.0) / 4)
    assert found.pass_differs == pytest.approx(0.25)
    assert reach_of([run, run], band=0.02) == replace(found, num_updates=8)
    no_budget = replace(run, measured_U=np.array([0.0, 0.1, 0.11, np.nan, -0.2, 0.3]))
    assert reach_of([no_budget], band=0.02).pass_differs == 0
    alone = LoopUpdates(**{name: getattr(run, name)[[0, 3]] for name in run.__dataclass_fields__})
    with pytest.raises(ValueError, match="no update steers"):
        reach_of([alone], band=0.02)


def test_changes_stay_within_a_step_and_steps_have_the_next_one_s_beginning() -> None:
    run = loop(entropy=[0.5, 0.6, 0.4, 0.7, 0.8, 0.85], predicted=[0.1, 0.2, 0.3, 1.0, 2.0, 3.0])
    sums, change = changes_of_updates(run, run.predicted_U)
    np.testing.assert_allclose(sums, [-0.45, -1.35, 0.45, 1.35])  # 0.1, 0.3, 1.0, 3.0 less 0.55 and 1.65
    np.testing.assert_allclose(change, [0.0, -0.125, 0.0, 0.125], atol=1e-12)  # 0.1, -0.1, 0.1, 0.15 likewise
    predicted, moved = changes_of_steps(run)
    np.testing.assert_allclose(predicted, [0.2])
    np.testing.assert_allclose(moved, [0.2])
    assert estimate_bias(run) == pytest.approx(0.4 - 0.7)  # before the first step's last update, at the second's start
    gap = replace(run, step_U=np.array([1, 1, 1, 3, 3, 3]))
    assert len(changes_of_steps(gap)[0]) == 0
    assert estimate_bias(gap) is None


def test_an_estimate_that_is_high_by_chance_is_no_effect_of_what_the_loop_asks_for() -> None:
    """Nothing moves the entropy; the loop asks for less where its estimate is high. A change from the update's own
    estimate would go with the prediction at a correlation of 0.7."""
    steps, updates = 400, 8
    noise = np.random.default_rng(0).standard_normal((steps, updates))
    noise[:, 0] = 0.0  # a step's first estimate is of no mini-batch
    zeros = np.zeros(steps * updates)
    run = LoopUpdates(
        step_U=np.repeat(np.arange(steps), updates),
        entropy_U=1 + noise.ravel(),
        predicted_U=-noise.ravel(),
        **{f"{name}_U": zeros for name in ("knob", "wanted", "measured")},
    )
    for beta in (0.0, 0.9):
        found = fit_change(*changes_of_updates(run, averaged(run.predicted_U, beta)))
        assert found is not None
        assert abs(found.correlation) < 0.06


def test_a_fit_has_its_line_and_its_correlation() -> None:
    predicted = np.array([-0.4, -0.1, 0.2, 0.5])
    found = fit_change(predicted, 0.02 * predicted - 0.005)
    assert found is not None
    assert (found.slope, found.change_at_zero) == (pytest.approx(0.02), pytest.approx(-0.005))
    assert (found.correlation, found.signs_agree, found.pairs) == (pytest.approx(1.0), 0.75, 4)
    assert fit_change(predicted, np.zeros(4)) is None
    assert fit_change(predicted[:2], predicted[:2]) is None


def test_an_average_forgets_its_beginning() -> None:
    np.testing.assert_allclose(averaged(np.ones(5), 0.9), 1.0)
    np.testing.assert_allclose(averaged(np.array([1.0, 0.0]), 0.9), [1.0, 0.09 / 0.19])
    np.testing.assert_allclose(averaged(np.array([1.0, 3.0]), 0.0), [1.0, 3.0])
