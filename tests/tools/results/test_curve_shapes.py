"""The statistics of curves: on curves with the shapes, on noise, and on cases with known numbers."""

from functools import partial

import numpy as np
import pytest
from results.curve_shapes import (
    Shape,
    count_turns,
    envelope_slopes,
    explained_share,
    find_oscillation,
    find_shape,
    judge_oscillation_of_many,
    judge_slopes_of_many,
    phase_slopes,
    shares_of_noise,
    smooth,
)

STEPS = 40
PLACES = np.arange(STEPS) / STEPS
RISE_FALL = Shape(name="rise-fall", knots=(0.5,), signs=(1, -1))
FALL_RISE_FALL = Shape(name="fall-rise-fall", knots=(0.25, 0.5), signs=(-1, 1, -1))
TENT = np.minimum(PLACES, 1 - PLACES) * 2
"""Up to 1 at the half and down again."""
VALLEY = np.interp(PLACES, [0, 0.25, 0.5, 1], [1, 0, 1, 0.2])
DECAY = (1 - 0.8 * PLACES) * (0.6 + 0.4 * np.cos(2 * np.pi * 3 * PLACES))


def runs_of(curve: np.ndarray, *, seeds: int = 3, noise: float = 0.02) -> np.ndarray:
    draws = np.random.default_rng(7).standard_normal((seeds, len(curve)))
    return curve + noise * draws


def test_slopes_of_a_curve_that_is_the_shape() -> None:
    curve = np.interp(PLACES, [0, 0.3, 1], [1.0, 1.6, 0.9])
    np.testing.assert_allclose(phase_slopes(PLACES, curve[None], (0.3,)), [[2.0, -1.0]], atol=1e-9)
    np.testing.assert_allclose(phase_slopes(PLACES, VALLEY, (0.25, 0.5)), [-4, 4, -1.6], atol=1e-9)
    assert explained_share(PLACES, curve, (0.3,)) == pytest.approx(1.0)
    assert explained_share(PLACES, TENT, ()) < 0.05  # no line is a tent
    assert explained_share(PLACES, np.full(STEPS, 0.7), (0.5,)) == 1.0


def test_slopes_do_not_depend_on_how_many_steps_there_are() -> None:
    few = np.arange(20) / 20
    slopes = [phase_slopes(places, np.interp(places, [0, 0.5, 1], [1, 2, 1]), (0.5,)) for places in (few, PLACES)]
    np.testing.assert_allclose(slopes[0], slopes[1])


@pytest.mark.parametrize(("curve", "shape"), [(TENT, RISE_FALL), (VALLEY, FALL_RISE_FALL)])
def test_a_shape_is_found_in_its_curve_and_not_in_the_others(curve: np.ndarray, shape: Shape) -> None:
    found = find_shape(PLACES, runs_of(curve), shape)
    assert found.answer == "yes"
    assert [one.value > 0 for one in found.slopes] == [sign > 0 for sign in shape.signs]
    assert found.explained > 0.95 > found.explained_straight
    assert find_shape(PLACES, runs_of(-curve), shape).answer == "no"
    assert find_shape(PLACES, runs_of(1 - PLACES), shape).answer == "no"  # a fall throughout
    assert find_shape(PLACES, runs_of(curve)[:1], shape).answer == "open"  # of one seed


def test_the_two_shapes_are_told_apart() -> None:
    assert find_shape(PLACES, runs_of(VALLEY), RISE_FALL).answer != "yes"
    assert find_shape(PLACES, runs_of(TENT), FALL_RISE_FALL).answer == "no"


def test_seeds_that_disagree_leave_it_open() -> None:
    curves = np.stack([TENT, 0.1 * TENT, -0.5 * TENT])
    assert find_shape(PLACES, curves, RISE_FALL).answer == "open"


def test_a_phase_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a phase from 0\.95 to 0\.97 of the run has 1 of 40 steps; expected 2"):
        phase_slopes(PLACES, TENT[None], (0.95, 0.97))


def test_turns_count_swings_and_no_ripple() -> None:
    assert count_turns(TENT, 0.1) == 1
    assert count_turns(VALLEY, 0.1) == 2
    assert count_turns(PLACES, 0.1) == count_turns(1 - PLACES, 0.1) == 0
    assert count_turns(0.04 * np.cos(np.arange(STEPS) * np.pi), 0.1) == 0
    assert count_turns(0.06 * np.cos(np.arange(STEPS) * np.pi), 0.1) == STEPS - 2
    np.testing.assert_array_equal(count_turns(np.stack([TENT, VALLEY]), 0.1), [1, 2])


def test_smoothing_keeps_lines_and_takes_ripples() -> None:
    np.testing.assert_allclose(smooth(PLACES)[2:-2], PLACES[2:-2])
    ripple = np.cos(np.arange(STEPS) * np.pi)
    assert np.abs(smooth(ripple)).max() < 0.4 * np.abs(ripple).max()
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0])), [1.5, 3.0, 4.0])


def test_an_envelope_s_slope_is_that_of_the_largest_values() -> None:
    np.testing.assert_allclose(envelope_slopes(np.repeat([1.0, 0.8, 0.6, 0.4], 5)), -0.8)
    wave = np.where(np.arange(STEPS) % 5 == 0, 1 - PLACES, -5.0)
    assert envelope_slopes(wave) == pytest.approx(-1.0, abs=0.01)


def test_a_decay_that_oscillates_is_found_and_its_parts_alone_are_not() -> None:
    found = find_oscillation(runs_of(DECAY))
    assert found.answer == "yes"
    assert min(found.turns) >= 4
    assert find_oscillation(runs_of(1 - PLACES)).answer == "no"  # falls, does not turn
    swinging = 0.6 + 0.4 * np.cos(2 * np.pi * 4 * (np.arange(STEPS) + 0.5) / STEPS)
    assert find_oscillation(runs_of(swinging)).answer == "open"  # turns, does not fall
    assert find_oscillation(runs_of(DECAY[::-1])).answer == "no"
    assert find_oscillation(runs_of(DECAY)[:1]).answer == "open"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_noise_rarely_passes_for_a_shape(seeds: int) -> None:
    """Of walks without a shape both phases go the right way by chance in less than 2.5 %, three in less still."""
    for shape, curve, most in ((RISE_FALL, TENT, 0.02), (FALL_RISE_FALL, VALLEY, 0.01)):
        found = shares_of_noise(
            lambda curves, shape=shape: judge_slopes_of_many(PLACES, curves, shape=shape),
            curve,
            seeds=seeds,
            step_deviation=0.03,
            heights=(0.0, 2.0),
        )
        assert found.wandering.yes <= most
        assert found.scattered.yes <= most
        assert found.with_shape[0] == (0.0, found.wandering)
        assert found.with_shape[1][1].yes > (0.1 if seeds == 2 else 0.6)
        assert found.with_shape[1][1].no <= 0.01  # nor does a high shape pass for none


def test_noise_rarely_passes_for_a_decay_that_oscillates() -> None:
    found = shares_of_noise(judge_oscillation_of_many, DECAY, seeds=3, step_deviation=0.03, heights=(1.0,))
    assert found.wandering.yes <= 0.05
    assert (found.scattered.yes, found.scattered.no) == (0, 1)  # which turns by less than counts
    assert found.with_shape[0][1].yes > 0.6
    assert found.with_shape[0][1].no <= 0.01


def test_a_trend_under_the_curves_hides_a_shape() -> None:
    """As of runs whose entropy falls by itself: a low rise is lost in the fall, and denied."""
    judge = partial(judge_slopes_of_many, PLACES, shape=RISE_FALL)
    found, under_fall = (
        shares_of_noise(judge, TENT, seeds=3, step_deviation=0.03, heights=(0.1,), trend_K=trend).with_shape[0][1]
        for trend in (0.0, -0.5 * PLACES)
    )
    assert found.no < 0.02
    assert under_fall.no > 5 * found.no


def test_made_up_curves_have_the_deviation_of_a_step_s_change() -> None:
    seen = []

    def judge(curves: np.ndarray) -> np.ndarray:
        seen.append(np.diff(curves, axis=-1).std())
        return np.zeros(len(curves), dtype=np.int8)

    shares_of_noise(judge, np.zeros(20), seeds=3, step_deviation=0.3, heights=(0.4,), trials=500)
    np.testing.assert_allclose(seen, 0.3, rtol=0.02)


def test_many_are_judged_as_one_is() -> None:
    """Both ways to the answer agree, case by case."""
    draws = np.random.default_rng(3).standard_normal((300, 3, STEPS)) * 0.03
    curves = draws.cumsum(axis=-1) + np.random.default_rng(4).uniform(0, 2, (300, 1, 1)) * TENT
    words = {"yes": 1, "no": -1, "open": 0}
    for turned in (1, -1):
        many = judge_slopes_of_many(PLACES, turned * curves, shape=RISE_FALL)
        assert many.tolist() == [words[find_shape(PLACES, turned * one, RISE_FALL).answer] for one in curves]
        assert 0.05 < (many == turned).mean() < 0.95
    curves = draws.cumsum(axis=-1) + np.random.default_rng(5).uniform(0, 2, (300, 1, 1)) * DECAY
    many = judge_oscillation_of_many(curves)
    assert many.tolist() == [words[find_oscillation(one).answer] for one in curves]
    assert min((many == answer).mean() for answer in words.values()) > 0.05
    assert not judge_slopes_of_many(PLACES, curves[:, :1], shape=RISE_FALL).any()
