"""The only update of a step: its own forward gives the old log-probs, and nothing changes before they are checked."""

import math
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.controller.mismatch import LogpMismatchError, NonFiniteLogpError
from megarl.objective.controllers import ControllerState
from megarl.objective.tokens import Controls
from megarl.telemetry.metrics import to_values
from tests.controller.fakes import Forgetful, Recorder, make_config, make_parts, run

ONE_UPDATE = {"mini_batch_responses": 4}
KL = {"auxiliary": {"kl": {}}, "controllers": {"reference_reset": {"every_steps": 2}}}


def test_there_is_no_pass_for_the_scores() -> None:
    recorder = Recorder()
    run(make_config(**ONE_UPDATE), recorder)
    step = ["generate", "reward", "differentiate", "apply"]
    assert recorder.calls == [
        *step,
        *("receive 1", "publish 1", "adopt 1", "commit 1"),
        *step,
        *("receive 2", "publish 2", "adopt 2"),
        *("export hf-2", "commit 2"),
    ]
    assert recorder.reported_updates == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    "objective",
    [
        {"clip": {"kind": "flexec", "schedule": "od"}},
        {"auxiliary": {"entropy": {}}, "controllers": {"aer": {}}},
        {"weights": {"tis": {}}},
        {"weights": {"high_entropy": {}}},
    ],
    ids=["oscillation", "aer", "tis", "survey"],
)
def test_what_must_be_known_before_the_update_has_its_pass(objective: dict[str, Any]) -> None:
    recorder = Recorder()
    run(make_config(objective, steps=1, **ONE_UPDATE), recorder)
    assert recorder.calls[:4] == ["generate", "reward", "old_logp", "update 0"]


def test_nothing_is_applied_where_the_trainer_differs_from_vllm() -> None:
    recorder = Recorder(offset=3.0)
    with pytest.raises(LogpMismatchError, match=r"1\.5 nats per token"):
        run(make_config(**ONE_UPDATE), recorder)
    assert recorder.calls == ["generate", "reward", "differentiate"]


def test_nothing_is_applied_after_a_publication_that_went_wrong() -> None:
    recorder = Forgetful()
    with pytest.raises(LogpMismatchError, match="suspect the publication"):
        run(make_config(**ONE_UPDATE), recorder)
    assert recorder.calls[-1] == "differentiate"


@pytest.mark.parametrize("fault", [{"offset": math.nan}, {"entropy": math.inf}])
def test_nothing_is_applied_where_a_score_is_not_finite(fault: dict[str, float]) -> None:
    recorder = Recorder(**fault)
    with pytest.raises(NonFiniteLogpError, match="No weight was changed"):
        run(make_config(**ONE_UPDATE), recorder)
    assert recorder.calls[-1] == "differentiate"


@pytest.mark.parametrize("objective", [{}, KL, {"clip": {"kind": "flexec"}}], ids=["plain", "kl", "flexec"])
def test_the_step_is_the_same_with_a_pass(objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> list[Any]:
        recorder = Recorder()
        run(make_config(objective, **ONE_UPDATE), recorder)
        metrics = [to_values(record.metrics) for record in recorder.records]
        told = [[(name, value) for name, value in of_step.items() if "perf/" not in name] for of_step in metrics]
        told += [[record.traces, record.token_texts] for record in recorder.records]
        scores = [[(s.sample_id, s.old_logp.tolist()) for s in record.token_scores] for record in recorder.records]
        resets = recorder.calls.count("reset_reference")
        return [told, scores, recorder.controls, recorder.traced, recorder.reached, resets]

    without = steps()
    monkeypatch.setattr(RunConfig, "scores_in_update", False)
    assert repr(steps()) == repr(without)


def test_numbers_that_were_not_foreseen_are_not_trained_with() -> None:
    class Changing(ControllerState):
        def foresee(self, step: int) -> Controls:
            return Controls(step=step, seed=1)

    config, recorder = make_config(**ONE_UPDATE), Recorder()
    controllers = Changing(config.objective, total_steps=2, seed=0)
    with pytest.raises(RuntimeError, match=r"step 1 was differentiated with Controls\(.*seed=1.*, but its numbers"):
        run(config, recorder, controllers=controllers)
    assert recorder.calls[-1] == "differentiate"
    assert make_parts(config, recorder).controllers.foresee(1) == Controls(step=1, seed=0)
