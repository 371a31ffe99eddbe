"""Going on after a step: what is beyond it goes, what is not stays byte for byte."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megarl.telemetry import cut_back as module
from megarl.telemetry.cut_back import cut_back, cut_rows, find_gaps
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import JsonlSink, build_sinks, build_update_sinks, read_metrics
from megarl.telemetry.spans import Spans, read_timeline
from tests.telemetry.runs import make_config


def make_run(tmp_path: Path, **logging: object) -> RunDirectory:
    """A run killed in step 4: what it leaves of steps 1 to 3, and of half of the next."""
    config = make_config(tmp_path, logging={"directory": str(tmp_path), **logging})
    run = RunDirectory.create(config, source=None, verb="train")
    sinks, updates = build_sinks(config, run=run), build_update_sinks(run=run)
    with Spans(run.timeline_path) as spans:
        for step in (1, 2, 3):
            with spans.measure("step", step=step), spans.measure("generate"):
                pass
            for update in (0, 1):
                updates.log(step, {"update": float(update)})
            sinks.log(step, {"reward/mean": 0.1 * step, "actor/entropy": math.nan})
            # The file of a step is drawn when it is written: in the middle of the next one.
            spans.record("write", start_s=1.0, end_s=2.0, lane="files", step=step)
            run.rollouts_path(step).write_text("rows")
    updates.log(4, {"update": 0.0})
    sinks.close()
    updates.close()
    (run.rollouts / ".step-000004.parquet.0a1b2c3d.partial").write_text("half")
    return run


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_what_is_beyond_the_step_goes_and_the_rest_stays_as_it_is(step: int, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = {path: path.read_bytes() for path in (run.metrics_path, run.updates_path)}
    cut = cut_back(run, step=step)
    assert steps_of(run.metrics_path) == list(range(1, step + 1))
    assert steps_of(run.updates_path) == [number for number in range(1, step + 1) for _ in (0, 1)]
    for path, was in before.items():
        assert was.startswith(path.read_bytes())
    assert sorted(path.name for path in run.rollouts.iterdir()) == [
        f"step-{number:06d}.parquet" for number in range(1, step + 1)
    ]
    drawn = [event for event in read_timeline(run.timeline_path) if event["ph"] == "X"]
    assert [(event["name"], event["args"]["step"]) for event in drawn if "args" in event] == [
        (name, number) for number in range(1, step + 1) for name in ("step", "write")
    ]
    assert sum(event["name"] == "generate" for event in drawn) == step
    assert any(line.startswith("updates.jsonl: ") for line in cut)
    assert cut_back(run, step=step) == []  # nothing is left to cut


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_evaluations_beyond_the_step_go_and_a_run_that_starts_over_has_none(step: int, tmp_path: Path) -> None:
    """That of the weights which the run began with has a row of step 0."""
    run = make_run(tmp_path)
    rows = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(b'{"step": 0, "eval/sums/mean@4": 0.5}\n' + rows)
    for number in (0, 2):
        (run.evaluations / f"step-{number:06d}" / "sums.parts").mkdir(parents=True)
        (run.evaluations / f"step-{number:06d}" / "other.parquet").write_text("rows")
    cut_back(run, step=step)
    assert steps_of(run.metrics_path) == (list(range(step + 1)) if step else [])
    kept = [f"step-{number:06d}" for number in (0, 2) if number <= step] if step else []
    assert sorted(path.name for path in run.evaluations.iterdir()) == kept


def test_the_timeline_goes_on_after_it_was_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    cut_back(run, step=2)
    with Spans(run.timeline_path) as spans, spans.measure("step", step=3):
        pass
    events = json.loads(run.timeline_path.read_text())
    assert [event["args"]["step"] for event in events if event["name"] == "step"] == [1, 2, 3]


def test_a_row_that_was_cut_in_half_goes_with_what_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    assert list(cut_rows(path, step=5)) == ["metrics.jsonl: 1 rows beyond step 5"]
    assert path.read_bytes() == b'{"step": 1, "x": 1.0}\n'
    assert list(cut_rows(path, step=5)) == []


def test_a_last_row_that_lacks_only_its_end_is_a_row(tmp_path: Path) -> None:
    """An editor leaves such. It stays where it is of a finished step, as a line."""
    path = tmp_path / "metrics.jsonl"
    rows = b'{"step": 1, "x": 1.0}\n{"step": 2, "x": 2.0}'
    path.write_bytes(rows)
    assert list(cut_rows(path, step=2)) == []
    assert path.read_bytes() == rows + b"\n"
    path.write_bytes(rows)
    assert list(cut_rows(path, step=1)) == ["metrics.jsonl: 1 rows beyond step 1"]
    assert path.read_bytes() == b'{"step": 1, "x": 1.0}\n'


def test_rows_are_told_by_their_step_however_they_are_written(tmp_path: Path) -> None:
    """As jq writes them, and with the step in another place."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,"x":1}\nno row\n{"x": 2, "step": 2}\n{"step":3,"x":3}\n{"step": 2, "x": 4}\n')
    assert list(cut_rows(path, step=2)) == ["metrics.jsonl: 2 rows beyond step 2"]
    assert path.read_bytes() == b'{"step":1,"x":1}\nno row\n{"x": 2, "step": 2}\n'


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_text("weights")
    (run.exports / "step-000003").symlink_to(elsewhere)
    assert "hf/step-000003" in cut_back(run, step=2)
    assert list(run.exports.iterdir()) == []
    assert [path.name for path in elsewhere.iterdir()] == ["model.safetensors"]


def test_a_cut_that_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any of its changes: what is left is what one cut leaves."""
    changes = ("_truncate", "remove_tree", "write_timeline")
    whole = make_run(tmp_path / "whole")
    made = cut_back(whole, step=1)
    expected = contents(whole)
    for killed_after in range(len(made) + 1):
        run = make_run(tmp_path / str(killed_after))
        done = []

        def counted(change: Any, done: list[int] = done, limit: int = killed_after) -> Any:
            def make(*arguments: Any) -> None:
                if len(done) == limit:
                    raise KeyboardInterrupt
                done.append(1)
                change(*arguments)

            return make

        with monkeypatch.context() as patched:
            for name in changes:
                patched.setattr(module, name, counted(getattr(module, name)))
            with suppress(KeyboardInterrupt):
                cut_back(run, step=1)
        assert len(done) == killed_after
        cut_back(run, step=1)
        assert contents(run) == expected


def contents(run: RunDirectory) -> dict[str, Any]:
    """What is in the files that are cut, without times."""
    events = [(event["name"], event.get("args")) for event in read_timeline(run.timeline_path)]
    kept = [
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in (run.metrics_path, run.updates_path)
    ]
    folders = [sorted(path.name for path in folder.iterdir()) for folder in (run.rollouts, run.exports)]
    return {"events": events, "rows": kept, "folders": folders}


def test_files_that_are_not_there_are_not_missed(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    assert cut_back(run, step=3) == []


def test_rows_that_the_checkpoint_had_and_that_are_gone_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    cut_back(run, step=2)
    told = {"bytes": {"metrics.jsonl": run.metrics_path.stat().st_size, "updates.jsonl": 10_000, "gone.jsonl": 1}}
    size = run.updates_path.stat().st_size
    why = "when the checkpoint was written: it was edited, or rows were lost with the machine"
    assert find_gaps(run, told, step=2) == [
        f"updates.jsonl has {size} bytes of the steps up to 2, but had 10000 {why}",
        f"gone.jsonl has 0 bytes of the steps up to 2, but had 1 {why}",
    ]
    assert find_gaps(run, {}, step=2) == []


def test_a_file_says_how_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log(1, {"x": 1.0})
    assert sink.position() == path.stat().st_size
    sink.flush()
    sink.close()
    assert JsonlSink(path).position() == path.stat().st_size


def test_tensorboard_goes_on_without_a_gap_or_a_doubled_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = make_run(tmp_path, tensorboard=True)
    (first,) = run.tensorboard.iterdir()
    was = first.read_bytes()
    with first.open("ab") as file:
        file.write(was[-20:-5])  # half an event, as a killed run leaves it
    cut = cut_back(run, step=2)
    assert sum(line.startswith("tensorboard/") for line in cut) == 1
    assert was.startswith(first.read_bytes())
    config = make_config(tmp_path, logging={"directory": str(tmp_path), "tensorboard": True})
    sinks = build_sinks(config, run=run, after_step=2)
    for step in (3, 4):
        sinks.log(step, {"reward/mean": 0.1 * step})
    sinks.close()
    assert len(list(run.tensorboard.iterdir())) == 2
    events = accumulator.EventAccumulator(str(run.tensorboard))
    events.Reload()
    scalars = [(event.step, round(event.value, 3)) for event in events.Scalars("reward/mean")]
    assert scalars == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    # Back to before the second file: it goes whole.
    cut_back(run, step=1)
    assert [path.name for path in run.tensorboard.iterdir()] == [first.name]
    assert [row["step"] for row in read_metrics(run.metrics_path)] == [1]


@pytest.mark.parametrize("damage", [bytes(40), b"\x05\0\0\0\0\0\0\0crc!\xff\xff\xff\xff\xffcrc!", b"\xff" * 40])
def test_what_is_no_event_ends_a_file_of_tensorboard(damage: bytes, tmp_path: Path) -> None:
    """As a machine that lost its power leaves it."""
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path, tensorboard=True)
    (file,) = run.tensorboard.iterdir()
    was = file.read_bytes()
    file.write_bytes(was + damage)
    assert f"tensorboard/{file.name}: {len(damage)} bytes beyond step 3" in cut_back(run, step=3)
    assert file.read_bytes() == was


def test_a_tensorboard_that_is_open_forgets_what_was_cut(tmp_path: Path) -> None:
    """It has read on to step 3 in a file that is then cut, and hears of it in the next one."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    run = make_run(tmp_path, tensorboard=True)
    cut_back(run, step=2)
    config = make_config(tmp_path, logging={"directory": str(tmp_path), "tensorboard": True})
    build_sinks(config, run=run, after_step=2).close()
    newest = max(run.tensorboard.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    begun = [event for event in EventFileLoader(str(newest)).Load() if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in begun] == [(3, SessionLog.START)]
