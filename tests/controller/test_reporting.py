"""What a step leaves in the run directory."""

import dataclasses
import io
import json
from pathlib import Path

import pytest

from megarl.controller.parts import Parts
from megarl.controller.reporting import StepReporter
from megarl.telemetry.columns import RL_COLUMNS
from megarl.telemetry.console import Console
from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans
from tests.controller.fakes import Recorder, make_config, make_parts, run


def test_a_run_leaves_rows_metrics_and_the_state_to_go_on_from(tmp_path: Path) -> None:
    objective = {"advantage": {"method": "smoothed"}, "sampler": {"kind": "dynamic"}}
    config = make_config(objective, steps=2)
    logging = config.logging.model_copy(update={"directory": str(tmp_path), "traced_responses": 3})
    config = config.model_copy(update={"logging": logging})
    directory = RunDirectory.create(config, source=None, verb="train")
    recorder = Recorder()
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
    with Console(steps=2, columns=RL_COLUMNS, file=io.StringIO()) as console, Spans(directory.timeline_path) as spans:
        reporter = StepReporter(
            config=config,
            directory=directory,
            console=console,
            sinks=sinks,
            update_sinks=update_sinks,
            spans=spans,
        )
        run(config, recorder, reporter=reporter)
    sinks.close()
    update_sinks.close()
    rows = read_rollouts(directory.rollouts_path(2))
    assert [row.sample_id for row in rows] == [0, 1, 2, 3]
    assert [row.trace is not None for row in rows] == [True, False, True, False]
    lines = [json.loads(line) for line in directory.metrics_path.read_text().splitlines()]
    assert [line["sampler/generations"] for line in lines] == [1, 1]
    assert lines[1]["actor/old_entropy"] == 1.0
    updates = [json.loads(line) for line in directory.updates_path.read_text().splitlines()]
    assert [(line["step"], line["update"]) for line in updates] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert {line["actor/entropy"] for line in updates} == {0.5}
    state = directory.read_state()
    assert (state.status, state.step, state.sampler["num_drawn"]) == ("running", 2, 4)
    parts: Parts = make_parts(config, recorder)
    parts.load_controller_state(state.controllers)
    assert parts.controller_state() == state.controllers
    assert sorted(state.controllers["advantage"]) == ["0", "1", "2", "3"]
    assert parts.controllers.begin_step(3, 1.0).step == 3


def test_a_state_of_before_has_no_controllers(tmp_path: Path) -> None:
    """state.json files that were written without the field still load."""
    directory = RunDirectory(tmp_path)
    facts = dataclasses.asdict(RunState(status="finished", step=4))
    del facts["controllers"]
    directory.state_path.write_text(json.dumps(facts))
    assert directory.read_state() == RunState(status="finished", step=4)
    with pytest.raises(ValueError, match="controller state has keys"):
        make_parts(make_config(), Recorder()).load_controller_state(directory.read_state().controllers)
