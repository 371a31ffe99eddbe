"""The closed loop between steps: its target, its integral, and that it goes on exactly after a resume."""

import json
import random
from typing import Any

import pytest

from megarl.config.objective import ObjectiveConfig
from megarl.objective.controllers import ControllerState
from megarl.objective.loop_numbers import LoopChoice, LoopControls
from megarl.telemetry.metrics import to_values


def controllers(loop: dict[str, Any] | None = None, *, total_steps: int = 10) -> ControllerState:
    clip = {"kind": "closed_loop", "loop": loop or {}}
    return ControllerState(ObjectiveConfig.model_validate({"clip": clip}), total_steps=total_steps, seed=0)


def choice(*, knob: float, wanted: float = 0.0, predicted: float = 0.0) -> LoopChoice:
    return LoopChoice(knob=knob, wanted=wanted, predicted=predicted, size=1.0, entropy=1.0)


def loop_of(state: ControllerState, step: int, entropy: float) -> LoopControls:
    found = state.begin_step(step, entropy).loop
    assert found is not None
    return found


def test_hold_steers_to_the_first_entropy() -> None:
    state = controllers()
    assert loop_of(state, 1, 0.8) == LoopControls(target=0.8, entropy=0.8, offset=0.0, knob=0.5)
    assert loop_of(state, 2, 0.7).target == 0.8
    assert to_values(state.metrics())["control/entropy_target"] == 0.8


@pytest.mark.parametrize(
    ("loop", "targets"),
    [
        ({"at": [0.0, 0.5, 1.0], "entropy": [1.0, 1.5, 0.5]}, [2.2, 2.4, 2.6, 2.8, 3.0, 2.6, 2.2, 1.8, 1.4, 1.0]),
        ({"at": [2.0, 4.0], "entropy": [0.3, 0.7], "over": "steps", "unit": "nats"}, [0.3, 0.3, 0.5, 0.7, 0.7]),
        ({"at": [0.0], "entropy": [0.5], "unit": "nats"}, [0.5, 0.5, 0.5]),
    ],
    ids=["rise and fall", "steps and nats", "hold at a number"],
)
def test_the_target_is_the_one_of_the_step_s_end(loop: dict[str, Any], targets: list[float]) -> None:
    state = controllers(loop)
    entropies = [2.0, *([0.1] * len(targets))]  # the first one counts
    found = [loop_of(state, step, entropies[step - 1]).target for step in range(1, len(targets) + 1)]
    assert found == pytest.approx(targets)


def test_a_step_s_error_moves_what_is_asked_for_from_then_on() -> None:
    state = controllers({"integral": 0.5})
    loop_of(state, 1, 1.0)
    state.end_update(choice(knob=0.6))
    assert loop_of(state, 2, 0.9).offset == pytest.approx(0.05)  # 0.5 (1 - 0.9)
    assert loop_of(state, 3, 1.2).offset == pytest.approx(-0.05)
    assert to_values(state.metrics())["control/loop_offset"] == pytest.approx(-0.05)
    for step in range(4, 9):
        assert -1.0 <= loop_of(state, step, 5.0).offset <= 1.0
    assert loop_of(state, 9, 5.0).offset == -1.0


def test_it_does_not_wind_up_where_bounds_can_do_no_more() -> None:
    state = controllers({"integral": 0.5})
    loop_of(state, 1, 1.0)
    state.end_update(choice(knob=1.0, wanted=0.4, predicted=0.1))
    assert loop_of(state, 2, 0.9).offset == 0.0  # more was wanted than there was, and more still would be
    assert loop_of(state, 3, 1.1).offset == pytest.approx(-0.05)  # the other way it may


def test_the_next_update_begins_where_the_last_one_ended() -> None:
    state = controllers()
    first = state.begin_step(1, 1.0)
    second = state.end_update(choice(knob=0.75))
    assert second.loop is not None
    assert (second.loop.knob, second.step) == (0.75, 1)
    assert first.loop is not None
    assert first.loop.knob == 0.5
    assert loop_of(state, 2, 1.0).knob == 0.75


def test_other_clips_have_no_loop() -> None:
    state = ControllerState(ObjectiveConfig(), total_steps=5, seed=0)
    controls = state.begin_step(1, 1.0)
    assert controls.loop is None
    assert state.end_update(None) is controls
    assert "loop" not in state.state_dict()


def test_a_resumed_run_goes_on_exactly() -> None:
    draw = random.Random(0)
    loop = {"at": [0.0, 0.5, 1.0], "entropy": [1.0, 1.3, 0.7]}
    whole, stopped = controllers(loop), controllers(loop)

    def one_step(state: ControllerState, step: int, numbers: list[float]) -> list[LoopControls | None]:
        seen = [state.begin_step(step, 0.5 + numbers[0]).loop]
        for knob in numbers[1:]:
            seen.append(state.end_update(choice(knob=knob, wanted=knob - 0.5, predicted=0.3 * knob)).loop)
        return seen

    steps = [[draw.random() for _ in range(5)] for _ in range(9)]
    expected = [one_step(whole, step, numbers) for step, numbers in enumerate(steps, start=1)]
    found = [one_step(stopped, step, numbers) for step, numbers in enumerate(steps[:4], start=1)]
    saved = json.loads(json.dumps(stopped.state_dict()))
    resumed = controllers(loop)
    resumed.load_state_dict(saved)
    found += [one_step(resumed, step, numbers) for step, numbers in enumerate(steps[4:], start=5)]
    assert found == expected
    assert resumed.state_dict() == whole.state_dict()
    assert {type(value) for value in saved["loop"].values()} == {float}


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="controller state has keys"):
        controllers().load_state_dict(ControllerState(ObjectiveConfig(), total_steps=5, seed=0).state_dict())
    state = controllers().state_dict()
    with pytest.raises(ValueError, match="closed loop state has keys"):
        controllers().load_state_dict(state | {"loop": {"knob": 0.5}})


def test_a_policy_without_entropy_is_not_steered_relative_to_it() -> None:
    with pytest.raises(ValueError, match=r'the entropy wanted after step 1 is 0 nats.*set unit to "nats"'):
        controllers().begin_step(1, 0.0)
