"""What a step leaves in the run directory."""

import asyncio
import gc
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from megarl.config.run import RunConfig
from megarl.controller import reporting
from megarl.controller.progress import RunProgress
from megarl.controller.reporting import StepReporter
from megarl.records import Rollout, Sample, SampleRequest, Score, TokenScores
from megarl.rewards.item import RewardItem, Verdict
from megarl.telemetry.columns import RL_COLUMNS
from megarl.telemetry.console import Console
from megarl.telemetry.garbage import ManualCollection
from megarl.telemetry.metrics import declared
from megarl.telemetry.rollouts import RolloutColumns, read_rollouts, write_rollouts
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import JsonlSink, build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans
from tests.controller.fakes import Recorder, make_config, make_parts, run


@contextmanager
def open_reporter(config: RunConfig, directory: RunDirectory) -> Iterator[StepReporter]:
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
    with Console(steps=2, columns=RL_COLUMNS, file=io.StringIO()) as console, Spans(directory.timeline_path) as spans:
        yield StepReporter(
            config=config, directory=directory, console=console, sinks=sinks, update_sinks=update_sinks, spans=spans
        )
    sinks.close()
    update_sinks.close()


def make_run(tmp_path: Path) -> tuple[RunConfig, RunDirectory]:
    config = make_config(steps=2)
    config = config.model_copy(
        update={"logging": config.logging.model_copy(update={"directory": str(tmp_path), "rollouts_every": 1})}
    )
    return config, RunDirectory.create(config, source=None, verb="train")


def steps_told(directory: RunDirectory) -> tuple[int, list[int]]:
    """(the step that state.json says, those of metrics.jsonl)."""
    lines = directory.metrics_path.read_text().splitlines()
    return directory.read_state().step, [json.loads(line)["step"] for line in lines]


def test_files_are_written_beside_the_next_step_and_nothing_speaks_of_them_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory = make_run(tmp_path)
    begun = threading.Event()
    told: list[tuple[int, list[int]]] = []

    def write_late(path: Path, columns: RolloutColumns) -> None:
        """The first file waits for the second step's responses."""
        assert begun.wait(30.0)
        told.append(steps_told(directory))
        write_rollouts(path, columns)

    class SecondStep(Recorder):
        def answer(self, position: int, request: SampleRequest) -> Rollout:
            if self.calls.count("generate") == 2:
                begun.set()
            return super().answer(position, request)

    monkeypatch.setattr(reporting, "write_rollouts", write_late)
    with open_reporter(config, directory) as reporter:
        run(config, SecondStep(), reporter=reporter)
    assert told == [(0, []), (1, [1])]
    assert steps_told(directory) == (2, [1, 2])
    assert [len(read_rollouts(directory.rollouts_path(step))) for step in (1, 2)] == [4, 4]
    first, second = (json.loads(line) for line in directory.metrics_path.read_text().splitlines())
    assert second["timing_s/write_wait"] >= first["timing_s/write_wait"] >= 0
    assert min(line["timing_s/write"] for line in (first, second)) > 0


def living_of(kinds: tuple[type, ...]) -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


def test_no_response_is_an_object_any_more_when_everything_is_looked_at_for_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at then stands in the way of everything else: with 40,000 responses 0.2 s."""
    config, directory = make_run(tmp_path)
    found: list[Counter[str]] = []
    kinds = (SampleRequest, Rollout, Sample, Score, TokenScores, RewardItem, Verdict)
    recorder = Recorder()

    def count(garbage: ManualCollection) -> None:
        recorder.requests.clear()
        recorder.items.clear()
        # The thread that had the record has no more of it now, one from before may be about to let go.
        deadline_s = time.monotonic() + 10.0
        while (living := living_of(kinds)) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        found.append(living)

    monkeypatch.setattr(ManualCollection, "collect", count)
    with open_reporter(config, directory) as reporter:
        run(config, recorder, reporter=reporter)
    assert found == [Counter(), Counter()]


def test_a_run_that_fails_still_has_the_step_before(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path)

    class Dying(Recorder):
        def answer(self, position: int, request: SampleRequest) -> Rollout:
            if self.calls.count("generate") == 2:
                raise RuntimeError("rollout rank 0 died")
            return super().answer(position, request)

    with open_reporter(config, directory) as reporter, pytest.raises(RuntimeError, match="rank 0 died"):
        run(config, Dying(), reporter=reporter)
    assert steps_told(directory) == (1, [1])
    assert len(read_rollouts(directory.rollouts_path(1))) == 4


def test_a_file_that_cannot_be_written_ends_the_run_and_is_not_spoken_of(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path)
    directory.rollouts.rmdir()
    directory.rollouts.write_text("no directory")
    recorder = Recorder()
    with open_reporter(config, directory) as reporter, pytest.raises(OSError, match="rollouts"):
        run(config, recorder, reporter=reporter)
    assert directory.read_state().step == 0
    assert not directory.metrics_path.read_text()
    assert recorder.calls.count("generate") == 2


def test_a_step_is_finished_when_its_checkpoint_is_there(tmp_path: Path) -> None:
    """The last step's is always due."""
    config, directory = make_run(tmp_path)
    told: list[tuple[int, list[int]]] = []

    class Exporting(Recorder):
        async def export_hf(self, path: str) -> None:
            while len(steps_told(directory)[1]) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            told.append(steps_told(directory))
            await super().export_hf(path)

    with open_reporter(config, directory) as reporter:
        run(config, Exporting(), reporter=reporter)
    assert told == [(1, [1, 2])]
    assert steps_told(directory) == (2, [1, 2])


def test_a_step_whose_checkpoint_failed_is_not_finished(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path)

    class Failing(Recorder):
        async def export_hf(self, path: str) -> None:
            raise OSError("the disk is full")

    with open_reporter(config, directory) as reporter, pytest.raises(OSError, match="disk is full"):
        run(config, Failing(), reporter=reporter)
    assert steps_told(directory) == (1, [1, 2])
    progress = RunProgress.from_state(directory.read_state().progress)
    assert (progress.step, progress.policy_version, progress.owners["controllers"]["step"]) == (1, 1, 1)
    assert len(read_rollouts(directory.rollouts_path(2))) == 4


def test_the_state_tells_what_the_metrics_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very step that it speaks of."""
    config, directory = make_run(tmp_path)
    log = JsonlSink.log

    def fail_at_the_second(sink: JsonlSink, step: int, values: Mapping[str, float]) -> None:
        if step == 2 and "update" not in values:
            raise OSError("no quota")
        log(sink, step, values)

    monkeypatch.setattr(JsonlSink, "log", fail_at_the_second)
    with open_reporter(config, directory) as reporter:
        run(config, Recorder(), reporter=reporter)
    assert steps_told(directory) == (2, [1])
    lost = {"metrics": {"JsonlSink": 1}, "updates": {"JsonlSink": 0}}
    assert directory.read_state().progress["owners"]["reporter"] == lost
    with open_reporter(config, directory) as reporter:
        reporter.load_state_dict(lost)
        assert reporter.state_dict() == lost
        with pytest.raises(ValueError, match=r"reporter state has keys \['lost'\], expected \['metrics', 'updates'\]"):
            reporter.load_state_dict({"lost": 1})


def test_a_run_leaves_rows_metrics_and_the_state_to_go_on_from(tmp_path: Path) -> None:
    objective = {"advantage": {"method": "smoothed"}, "sampler": {"kind": "dynamic"}}
    config = make_config(objective, steps=2)
    logging = config.logging.model_copy(update={"directory": str(tmp_path), "traced_responses": 3})
    config = config.model_copy(update={"logging": logging})
    directory = RunDirectory.create(config, source=None, verb="train")
    recorder = Recorder()
    with open_reporter(config, directory) as reporter:
        run(config, recorder, reporter=reporter)
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
    assert (state.status, state.step, state.progress["owners"]["sampler"]["num_drawn"]) == ("running", 2, 4)
    assert sorted(state.progress["owners"]["history"]) == ["0", "1", "2", "3"]
    progress = RunProgress.from_state(state.progress)
    with open_reporter(config, directory) as reporter:
        parts = make_parts(config, recorder, reporter=reporter)
        progress.restore(parts.owners, steps=2)
        assert RunProgress.collect(parts.owners, step=2, policy_version=2) == progress
    assert parts.controllers.begin_step(3, 1.0).step == 3


def test_a_state_of_another_version_tells_where_the_run_is_and_is_no_progress(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    facts = {"status": "finished", "step": 4, "sampler": {"num_drawn": 8}, "controllers": {}, "message": None}
    directory.state_path.write_text(json.dumps(facts))
    assert directory.read_state() == RunState(status="finished", step=4)
    with pytest.raises(ValueError, match=r"progress state has keys \[\], expected \['format', 'owners', 'policy_"):
        RunProgress.from_state(directory.read_state().progress)


def test_what_is_measured_at_the_start_is_a_row_of_step_0(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path)
    with open_reporter(config, directory) as reporter:
        with reporter.phase("eval", total=3):
            pass
        asyncio.run(reporter.report_start(declared({"eval/sums/mean@4": 0.25})))
        assert reporter.logged["eval/sums/mean@4"] == 0.25
        assert reporter.evaluation_path(12) == directory.path / "eval" / "step-000012"
        assert reporter.weights_name(12) == f"run {directory.run_id}, step 12"
    (row,) = [json.loads(line) for line in directory.metrics_path.read_text().splitlines()]
    assert (row["step"], row["eval/sums/mean@4"]) == (0, 0.25)
    assert row["timing_s/eval"] >= 0
