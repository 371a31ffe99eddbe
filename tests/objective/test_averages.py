"""FADE's exponent and GEPO's thresholds, step by step and by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest

from megarl.config.advantage import FocalAdvantage
from megarl.config.objective import ObjectiveConfig
from megarl.objective.advantage import compute_advantages
from megarl.objective.averages import AdvantageAverages
from megarl.telemetry.metrics import to_values


def build(**objective: Any) -> AdvantageAverages:
    return AdvantageAverages(ObjectiveConfig.model_validate(objective))


def logps(*entropies: float) -> list[np.ndarray]:
    """Responses of two tokens whose mean -log p is the entropy."""
    return [np.array([-entropy - 0.25, -entropy + 0.25]) for entropy in entropies]


def test_nothing_moves_where_nothing_asks() -> None:
    averages = build()
    assert averages.focal_power([1.0, 0.0]) is None
    assert averages.attenuate([1.0, -1.0], [0, 0], logps(1.0, 2.0)) == [1.0, -1.0]
    assert averages.state_dict() == {}
    assert averages.metrics() == {}


def test_focal_power_by_hand() -> None:
    # P = .5 -> .75 -> .875 -> .4375 -> .21875 with weight .5; 1.5 (1 - P) / P = .5, .214, 1.928571, 5.357.
    averages = build(advantage={"method": "focal", "rate": 0.5})
    steps = [[1.0, 1.0], [1.0], [0.0, 0.0], [0.0]]
    powers = [averages.focal_power(rewards) for rewards in steps]
    assert powers == pytest.approx([1.0, 1.0, 1.5 * 0.5625 / 0.4375, 3.0])
    assert to_values(averages.metrics()) == {"control/focal_power": 3.0}
    other = build(advantage={"method": "focal", "rate": 0.5})
    other.load_state_dict(json.loads(json.dumps(averages.state_dict())))
    # .21875 -> .359375.
    assert other.focal_power([0.5]) == averages.focal_power([0.5]) == pytest.approx(1.5 * 0.640625 / 0.359375)


def test_focal_power_while_nothing_is_solved() -> None:
    averages = build(advantage={"method": "focal", "rate": 1.0, "largest": 2.5})
    assert averages.focal_power([0.0]) == 2.5
    assert averages.focal_power([]) == 2.5
    assert averages.focal_power([-7.0]) == 2.5  # a penalty: below 0 nothing is solved, either
    assert averages.focal_power([5.0]) == 1.0


def test_focal_advantages_by_hand() -> None:
    # p = .25: A = .75^(alpha - 1) (R - .25); p = .75 likewise; without spread 0.
    rewards, groups = [1, 0, 0, 0, 1, 1, 1, 0, 1, 1], [0] * 4 + [1] * 4 + [2] * 2
    advantages = compute_advantages(FocalAdvantage(method="focal"), rewards, groups, focal_power=3.0)
    hard, easy = 0.75**2, 0.25**2
    expected = [0.75 * hard] + [-0.25 * hard] * 3 + [0.25 * easy] * 3 + [-0.75 * easy] + [0.0] * 2
    assert advantages == pytest.approx(expected)
    plain = compute_advantages(FocalAdvantage(method="focal"), rewards, groups, focal_power=1.0)
    assert plain == pytest.approx([0.75] + [-0.25] * 3 + [0.25] * 3 + [-0.75, 0.0, 0.0])
    with pytest.raises(ValueError, match="focal needs focal_power"):
        compute_advantages(FocalAdvantage(method="focal"), rewards, groups)


def test_focal_advantages_of_rewards_beyond_right_and_wrong() -> None:
    below = compute_advantages(FocalAdvantage(method="focal"), [1.0, -2.0], [0, 0], focal_power=2.0)
    assert below == [1.5, -1.5]  # a mean of -.5 solves nothing: factor 1
    above = compute_advantages(FocalAdvantage(method="focal"), [3.0, 1.0], [0, 0], focal_power=2.0)
    assert above == [0.0, 0.0]  # a mean of 2 is all solved


def test_gepo_by_hand() -> None:
    # Group entropies 1, 2, 3 (the second one's responses 1 and 3): mean 2, population deviation sqrt(2 / 3) = .816497;
    # thresholds 2 - .2 s = 1.836701 and 2 + .3 s = 2.244949.
    averages = build(shaping={"group_entropy": {}})
    ids = [0, 0, 1, 1, 2, 2]
    advantages = [1.0, -1.0] * 3
    shaped = averages.attenuate(advantages, ids, logps(1, 1, 1, 3, 3, 3))
    assert shaped == [0.5, -1.0, 1.0, -1.0, 1.0, -0.2]
    deviation = math.sqrt(2 / 3)
    assert averages.state_dict()["thresholds"] == pytest.approx([2 - 0.2 * deviation, 2 + 0.3 * deviation])
    # All at 4: the measured thresholds are 4 and 4, the running ones move by a hundredth.
    assert averages.attenuate([1.0, -1.0], [5, 5], logps(4, 4)) == [1.0, -0.2]
    low, high = 2 - 0.2 * deviation, 2 + 0.3 * deviation
    expected = [low + 0.01 * (4 - low), high + 0.01 * (4 - high)]
    assert averages.state_dict()["thresholds"] == pytest.approx(expected)
    assert to_values(averages.metrics()) == {
        "control/group_entropy_low": pytest.approx(expected[0]),
        "control/group_entropy_high": pytest.approx(expected[1]),
    }
    other = build(shaping={"group_entropy": {}})
    other.load_state_dict(json.loads(json.dumps(averages.state_dict())))
    assert other.attenuate([1.0], [0], logps(1.0)) == averages.attenuate([1.0], [0], logps(1.0)) == [0.5]
    assert other.state_dict() == averages.state_dict()


def test_gepo_weighs_tokens_and_leaves_groups_without_any() -> None:
    # One response of one token at 1, one of three at 3: the group's entropy is 2.5, not 2.
    averages = build(shaping={"group_entropy": {"low_width": 0.0, "high_width": 0.0}})
    tokens = [np.array([-1.0]), np.array([-3.0] * 3), np.array([]), np.array([-2.4])]
    assert averages.attenuate([1.0, -1.0, -1.0, 1.0], [0, 0, 1, 2], tokens) == [1.0, -0.2, -1.0, 0.5]
    assert averages.state_dict()["thresholds"] == pytest.approx([2.45, 2.45])
    fresh = build(shaping={"group_entropy": {}})
    assert fresh.attenuate([1.0], [0], [np.array([])]) == [1.0]
    assert fresh.state_dict() == {"thresholds": None}


def test_a_state_of_another_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="averages state has keys"):
        build(shaping={"group_entropy": {}}).load_state_dict({"solve_rate": 0.5})
