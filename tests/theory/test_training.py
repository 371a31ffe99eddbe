"""Whole trainings of a small softmax on random rewards, against a control that drops as many tokens without bias.

That clip-high lowers entropy, or outweighs clip-low, is not asserted: it does not hold in this setting.
"""

import math

import pytest

from megarl.config.theory import MultiStepConfig, TheoryConfig
from megarl.theory.multi_step import Trajectory, train
from megarl.theory.studies import study_training
from megarl.theory.tabular import Bounds


def run(config: MultiStepConfig, low: float, high: float, *, control: bool = False) -> Trajectory:
    return train(config, Bounds(low=low, high=high), control=control, seed=0)


@pytest.mark.parametrize("low", [0.2, pytest.param(0.1, marks=pytest.mark.slow)])
def test_clip_low_raises_entropy_against_its_control(low: float) -> None:
    config = MultiStepConfig(seeds=8, learning_rate=1e-2, clips=[[low, math.inf]])
    (row,) = study_training(TheoryConfig(multi_step=config))
    assert row.difference > 3 * row.standard_error > 0
    assert row.low_term > 0
    assert row.high_term == 0
    assert len(row.curve) == config.rollouts + 1
    # The control is matched: about as many tokens are dropped.
    assert row.control_dropped == pytest.approx(row.dropped, rel=0.3)


@pytest.mark.parametrize("clip", [(0.2, math.inf), (0.1, math.inf), (1.0, 0.2), (1.0, 0.1)])
def test_logged_terms_are_positive_under_gradient_ascent(clip: tuple[float, float]) -> None:
    """As figure 1 of the paper: both brackets are positive along a training, whatever the trend does."""
    config = MultiStepConfig(seeds=4, rollouts=60, optimizer="sgd", learning_rate=1.0)
    trajectory = run(config, *clip)
    assert 0.01 < trajectory.dropped < 0.1
    assert (trajectory.low_term if clip[0] < 1 else trajectory.high_term) > 1e-3


def test_nothing_is_clipped_with_one_update_per_rollout() -> None:
    trajectory = run(MultiStepConfig(seeds=2, rollouts=5, updates_per_rollout=1), 0.05, 0.05)
    assert trajectory.dropped == trajectory.low_term == trajectory.high_term == 0


def test_finite_steps_lose_entropy_without_any_clip() -> None:
    trajectory = run(MultiStepConfig(seeds=4, rollouts=30), 1.0, math.inf)
    assert trajectory.entropy[-1].max() < 1


def test_equal_seeds_give_equal_trainings() -> None:
    config = MultiStepConfig(seeds=2, rollouts=3)
    assert run(config, 0.2, 0.2).entropy.equal(run(config, 0.2, 0.2).entropy)
    assert not run(config, 0.2, 0.2).entropy.equal(
        train(config, Bounds(low=0.2, high=0.2), control=False, seed=1).entropy
    )
