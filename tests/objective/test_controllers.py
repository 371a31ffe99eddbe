"""Controllers step by step, by hand, and from their saved state."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from megarl.config.objective import ObjectiveConfig
from megarl.objective.controllers import ControllerState
from megarl.telemetry.metrics import to_values

KL = {"auxiliary": {"kl": {}}}


def build(total_steps: int = 10, **objective: Any) -> ControllerState:
    return ControllerState(ObjectiveConfig.model_validate(objective), total_steps=total_steps, seed=7)


def drive(state: ControllerState, entropies: list[float], *, first: int = 1, kl: float | None = None):
    controls = []
    for step, entropy in enumerate(entropies, start=first):
        controls.append(state.begin_step(step, entropy))
        state.end_step(kl)
    return controls


def test_without_controllers_the_configs_numbers_stay() -> None:
    plain = drive(build(), [2.0, 1.0])
    assert [(c.step, c.seed, c.entropy_coefficient, c.positive_scale) for c in plain] == [
        (1, 7, 0.0, 1.0),
        (2, 7, 0.0, 1.0),
    ]
    fixed = drive(
        build(auxiliary={"entropy": {"coefficient": 0.01}}, weights={"positive_scale": {"scale": 0.7}}), [2.0, 0.1]
    )
    assert [(c.entropy_coefficient, c.positive_scale) for c in fixed] == [(0.01, 0.7)] * 2


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"auxiliary": {"entropy": {"coefficient": 0.01}}, "weights": {"positive_scale": {"scale": 0.7}}},
        {"clip": {"kind": "flexec", "schedule": "did"}},
        {**KL, "controllers": {"reference_reset": {"every_steps": 2}}},
    ],
)
def test_numbers_that_no_entropy_moves_are_foreseen(objective: dict[str, Any]) -> None:
    state = build(**objective)
    for step, entropy in ((1, 0.7), (2, 0.1), (3, 2.0)):
        before = state.state_dict()
        foreseen = state.foresee(step)
        assert state.state_dict() == before
        assert foreseen == state.begin_step(step, entropy)
        assert to_values(state.metrics())["actor/old_entropy"] == entropy
    with pytest.raises(ValueError, match="controllers at step 3"):
        state.foresee(3)


@pytest.mark.parametrize(
    "objective",
    [
        {"clip": {"kind": "flexec", "schedule": "od"}},
        {"auxiliary": {"entropy": {}}, "controllers": {"aer": {}}},
        {"auxiliary": {"entropy": {}}, "controllers": {"entropy_coefficient": {}}},
        {"weights": {"positive_scale": {}}, "controllers": {"positive_scale": {}}},
    ],
)
def test_numbers_that_the_entropy_moves_are_not_foreseen(objective: dict[str, Any]) -> None:
    """All that moves them says so: each of these numbers differs with the entropy, in one of two steps."""
    moved = [
        [(c.upper, c.lower, c.entropy_coefficient, c.positive_scale) for c in drive(build(**objective), entropies)]
        for entropies in ([2.0, 0.05], [2.0, 1.9])
    ]
    assert moved[0] != moved[1]
    with pytest.raises(RuntimeError, match="follows from its entropy"):
        build(**objective).foresee(1)


def test_adaptive_coefficient_moves_and_acts_only_below_the_target() -> None:
    state = build(
        auxiliary={"entropy": {"coefficient": 0.0}},
        controllers={"entropy_coefficient": {"target": 0.5, "step": 0.125, "maximum": 0.25}},
    )
    controls = drive(state, [0.6, 0.4, 0.5, 0.3, 0.6, 0.7, 0.1])
    # Held at the bounds 0 and 0.25; up at the target itself; no bonus above it, whatever the coefficient.
    assert [c.entropy_coefficient for c in controls] == [0.0, 0.125, 0.25, 0.25, 0.0, 0.0, 0.125]
    assert state.state_dict()["entropy_coefficient"] == 0.125


def test_aer_style_coefficient_by_hand() -> None:
    state = build(auxiliary={"entropy": {"coefficient": 0.5}}, controllers={"aer": {"target_ratio": 0.5, "rate": 0.25}})
    # Target 0.5 * 2 = 1. 0.5 + 0.25 (1 - 2) = 0.25; + 0.25 (1 - 3) = -0.25 -> 0; + 0.25 (1 - 0.5) = 0.125.
    assert [c.entropy_coefficient for c in drive(state, [2.0, 3.0, 0.5])] == [0.25, 0.0, 0.125]


def test_positive_scale_is_moved_by_a_fixed_step() -> None:
    state = build(
        weights={"positive_scale": {"scale": 1.0}}, controllers={"positive_scale": {"target": 0.5, "step": 0.25}}
    )
    assert [c.positive_scale for c in drive(state, [0.4, 0.3, 0.5, 0.6])] == [0.75, 0.75, 1.0, 1.25]


def test_flexec_counts_finished_steps() -> None:
    state = build(total_steps=4, clip={"kind": "flexec", "schedule": "id"})
    controls = drive(state, [1.0] * 4)
    # The first step is k = 0 and the last k = 3 of 4.
    assert [c.upper for c in controls] == [(-0.25, 0.5), (-0.125, 0.35), (0.0, 0.2), (0.0, 0.2)]
    assert controls[3].lower == pytest.approx((-0.065, 0.25))
    assert to_values(state.metrics())["control/flexec_low_at_0.5"] == pytest.approx(0.2175)
    assert to_values(state.metrics())["control/flexec_high_at_0.5"] == pytest.approx(0.2)


def test_flexec_od_starts_lowering_and_switches_at_the_floor() -> None:
    state = build(total_steps=10, clip={"kind": "flexec", "schedule": "od"})
    raised = [c.upper == (-0.25, 0.5) for c in drive(state, [2.0, 0.4, 1.6, 1.7])]
    # Floor 0.4; the upper threshold is 0.4 + 1.6 (1 - k / 10) = 1.68 at k = 2 and 1.52 at k = 3.
    assert raised == [False, True, True, False]
    assert to_values(state.metrics())["control/flexec_raising"] == 0.0


def test_reference_reset_after_every_so_many_steps() -> None:
    state = build(**KL, controllers={"reference_reset": {"every_steps": 3}})
    due = []
    for step in range(1, 8):
        state.begin_step(step, 1.0)
        due.append(state.end_step(0.0))
    assert due == [False, False, True, False, False, True, False]
    assert to_values(state.metrics())["control/reference_resets"] == 2


def test_reference_reset_after_a_large_kl() -> None:
    state = build(**KL, controllers={"reference_reset": {"kl_above": 0.5}})
    state.begin_step(1, 1.0)
    assert not state.end_step(0.5)
    state.begin_step(2, 1.0)
    assert state.end_step(0.6)
    for missing in (None, math.nan):
        with pytest.raises(ValueError, match=r"kl_above is 0\.5, but the KL"):
            state.end_step(missing)


def test_without_a_reset_nothing_is_due() -> None:
    state = build(**KL)
    state.begin_step(1, 1.0)
    assert state.end_step(9.0) is False


def test_metrics_tell_only_of_what_is_on() -> None:
    state = build()
    assert state.metrics() == {}
    drive(state, [2.0, 0.5])
    assert to_values(state.metrics()) == {"actor/old_entropy": 0.5, "actor/entropy_over_start": 0.25}
    certain = build()
    drive(certain, [0.0])
    assert to_values(certain.metrics()) == {"actor/old_entropy": 0.0}


def test_the_target_is_logged_where_there_is_one() -> None:
    aer = build(auxiliary={"entropy": {}}, controllers={"aer": {"target_ratio": 0.4}})
    drive(aer, [2.0, 1.9])
    assert to_values(aer.metrics())["control/entropy_target"] == pytest.approx(0.8)
    one = {"entropy_coefficient": {"target": 0.3}}
    skywork = build(auxiliary={"entropy": {}}, controllers=one)
    drive(skywork, [2.0])
    assert to_values(skywork.metrics())["control/entropy_target"] == 0.3
    two = one | {"positive_scale": {"target": 0.5}}
    torn = build(auxiliary={"entropy": {}}, weights={"positive_scale": {}}, controllers=two)
    drive(torn, [2.0])
    assert "control/entropy_target" not in to_values(torn.metrics())


OBJECTIVES = [
    {
        "auxiliary": {"entropy": {}, "kl": {}},
        "controllers": {"entropy_coefficient": {"target": 1.0, "step": 1e-3}, "reference_reset": {"every_steps": 2}},
    },
    {"auxiliary": {"entropy": {}}, "controllers": {"aer": {}}, "clip": {"kind": "flexec", "schedule": "od"}},
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_run_goes_on_from_its_state(objective, cut) -> None:
    entropies = [1.3, 0.2, 0.9, 1.2, 0.25, 0.8, 1.1]
    straight = build(**objective)
    expected = drive(straight, entropies, kl=0.1)
    first, second = build(**objective), build(**objective)
    drive(first, entropies[:cut], kl=0.1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert drive(second, entropies[cut:], first=cut + 1, kl=0.1) == expected[cut:]
    assert second.metrics() == straight.metrics()
    assert second.state_dict() == straight.state_dict()


def test_a_fresh_state_is_json_too() -> None:
    state = build()
    state.load_state_dict(json.loads(json.dumps(build().state_dict(), allow_nan=False)))
    assert drive(state, [1.0])[0].step == 1


def test_mistakes_are_refused() -> None:
    state = build()
    with pytest.raises(ValueError, match="the last step they saw is 0"):
        state.begin_step(2, 1.0)
    with pytest.raises(ValueError, match="entropy of step 1 is nan"):
        state.begin_step(1, math.nan)
    with pytest.raises(ValueError, match=r"controller state has keys \['step'\], expected"):
        state.load_state_dict({"step": 3})
    with pytest.raises(ValidationError, match="is not above 0; positive tokens would be punished"):
        build(weights={"positive_scale": {"scale": 0.1}}, controllers={"positive_scale": {"step": 0.1}})


def test_stare_acts_below_its_target() -> None:
    state = build(weights={"stare": {}}, controllers={"stare": {"target": 0.5}})
    assert [controls.stare_acts for controls in drive(state, [0.7, 0.4, 0.5, 0.499])] == [False, True, False, True]
    assert to_values(state.metrics())["control/stare_acts"] == 1.0
    assert to_values(state.metrics())["control/entropy_target"] == 0.5
    assert [controls.stare_acts for controls in drive(build(weights={"stare": {}}), [0.7, 0.1])] == [True, True]


def test_a_fixed_negative_scale_is_the_configs() -> None:
    fixed = drive(build(weights={"negative_scale": {"scale": 0.0}}), [2.0, 0.1])
    assert [controls.negative_scale for controls in fixed] == [0.0, 0.0]


def test_failures_weigh_more_as_the_entropy_falls() -> None:
    # Running means 2, 1, .75, .375 with weight .5, H* = 1: 1 + H - H* = 2, 1, .75, .375 within .4 and 1.
    objective = {
        "weights": {"negative_scale": {"scale": 3.0}},
        "controllers": {"negative_scale": {"rate": 0.5, "smallest": 0.4}},
    }
    state = build(**objective)
    controls = drive(state, [2.0, 0.0, 0.5, 0.0])
    assert [c.negative_scale for c in controls] == pytest.approx([3.0, 3.0, 3.0 / 0.75, 3.0 / 0.4])
    values = to_values(state.metrics())
    assert values["control/negative_scale"] == pytest.approx(7.5)
    assert values["control/entropy_target"] == 1.0
    other = build(**objective)
    other.load_state_dict(json.loads(json.dumps(state.state_dict())))
    # .5 * .375 + .5 * 1.625 = 1.
    assert other.begin_step(5, 1.625).negative_scale == pytest.approx(3.0) == state.begin_step(5, 1.625).negative_scale


def test_a_state_has_what_the_objective_remembers_and_no_more() -> None:
    plain = {"step", "entropy_start", "entropy_coefficient", "raising", "reference_resets"}
    assert build().state_dict().keys() == plain
    fade = build(
        advantage={"method": "focal"}, weights={"negative_scale": {}}, controllers={"negative_scale": {}}
    ).state_dict()
    assert fade.keys() == plain | {"entropy_average", "averages"}
    for state, other in ((fade, build()), (build().state_dict(), build(clip={"kind": "closed_loop"}))):
        with pytest.raises(ValueError, match=r"controller state has keys .* a run that has begun keeps those"):
            other.load_state_dict(state)
