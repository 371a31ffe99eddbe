"""metrics.jsonl stays valid whatever happens; a broken sink is loud and harmless; the real W&B and TensorBoard."""

import json
import logging
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import JsonlSink, Sinks, WandbSink, build_sinks, read_metrics
from tests.telemetry.runs import make_config


def reject_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_lines_are_strict_json_with_null_for_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 5e-7, "policy_version": 3, "e": np.float32(0.5)}
    sink.log(1, values)  # type: ignore[arg-type]
    # Readable before close: one flushed line a step.
    (line,) = path.read_text().splitlines()
    row = json.loads(line, parse_constant=reject_constant)
    assert abs(row.pop("timestamp") - time.time()) < 60
    assert row == {"step": 1, "a": None, "b": None, "c": None, "d": 5e-7, "policy_version": 3, "e": 0.5}
    assert '"policy_version": 3,' in line
    sink.close()


def test_resume_drops_half_a_line_and_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path)
    first.log(1, {"x": 1.0})
    first.log(2, {"x": 2.0})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 3, "x"')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    second = JsonlSink(path)
    second.log(2, {"x": 20.0})
    second.close()
    rows = read_metrics(path)
    assert [(row["step"], row["x"]) for row in rows] == [(1, 1.0), (2, 20.0)]
    assert len(path.read_text().splitlines()) == 3


def test_read_metrics_names_the_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"x": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(path)


class FlakySink:
    """Fails at the steps it is told to."""

    def __init__(self, bad_steps: set[int]) -> None:
        self.bad_steps, self.seen = bad_steps, list[int]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step in self.bad_steps:
            raise ConnectionError("the server is gone")
        self.seen.append(step)

    def close(self) -> None:
        raise ConnectionError("still gone")


class OtherSink(FlakySink):
    """Another kind of destination."""


def test_a_failing_sink_is_reported_once_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flaky = FlakySink({2, 3})
    sinks = Sinks([flaky, JsonlSink(tmp_path / "metrics.jsonl")])
    with caplog.at_level(logging.ERROR):
        for step in (1, 2, 3, 4):
            sinks.log(step, {"x": float(step)})
        assert [record.message.split(";")[0] for record in caplog.records] == ["FlakySink failed at step 2"]
        assert "the server is gone" in caplog.text
        sinks.close()
    assert "FlakySink lost 2 steps in all" in caplog.text
    assert flaky.seen == [1, 4]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_lost_steps_are_counted_on_and_told_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Sinks([FlakySink({2, 3}), JsonlSink(tmp_path / "metrics.jsonl")])
    for step in (1, 2, 3):
        first.log(step, {"x": 1.0})
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"FlakySink": 2, "JsonlSink": 0}
    # The run goes on without metrics.jsonl and with another destination.
    second = Sinks([OtherSink(set()), FlakySink({5})])
    second.load_state_dict(state)
    with caplog.at_level(logging.ERROR):
        caplog.clear()
        for step in (4, 5):
            second.log(step, {"x": 1.0})
        assert [record.message.split(";")[0] for record in caplog.records] == ["FlakySink failed at step 5"]
        second.close()
    assert "FlakySink lost 3 steps in all" in caplog.text
    assert second.state_dict() == {"OtherSink": 0, "FlakySink": 3}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from megarl.telemetry.sinks import JsonlSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = JsonlSink(Path(sys.argv[1]))
sink.log(1, {"x": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
try:
    sink.log(2, {"x": 2.0, "a long name so that the line is cut": 1.0})
except OSError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.log(3, {"x": 3.0})
"""


def test_a_full_disk_leaves_no_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = make_config(tmp_path, logging={"directory": str(tmp_path), "tensorboard": True})
    run = RunDirectory.create(config, source=None, verb="train")
    sinks = build_sinks(config, run=run)
    sinks.log(1, {"reward/mean": 0.25})
    sinks.log(2, {"reward/mean": 0.5, "actor/entropy": math.nan})
    sinks.close()
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert math.isnan(events.Scalars("actor/entropy")[0].value)
    assert len(read_metrics(run.metrics_path)) == 2


WANDB_RUN = """
import logging, sys
from pathlib import Path
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import build_sinks
from tests.telemetry.runs import make_config
directory = Path(sys.argv[1])
logging.basicConfig(level="INFO")
config = make_config(directory, logging={"directory": str(directory), "wandb_project": "tiny"})
run = RunDirectory.create(config, source=None, verb="train")
sinks = build_sinks(config, run=run)
sinks.log(1, {"reward/mean": 0.25})
sinks.log(2, {"reward/mean": 0.5})
sinks.close()
"""


@pytest.mark.slow
def test_wandb_without_a_login_logs_offline_into_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    # An empty home and environment: nobody is logged in.
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", WANDB_RUN, str(tmp_path / "my runs")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, check=True, timeout=120, cwd=root, capture_output=True, text=True)
    (log,) = (tmp_path / "my runs").glob("tiny-train-*/wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"reward/mean" in content
    assert b"0.25" in content
    # What it says to do works as it is printed, in any directory: wandb finds the run it would send.
    (hint,) = re.findall(r"to send this run later: (wandb sync .+)", done.stderr)
    assert shlex.split(hint) == ["wandb", "sync", str(log.parent)]
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    dry = subprocess.run(
        f"{hint} --dry-run",
        shell=True,
        env=environment | {"PATH": path},
        cwd=home,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert log.name in dry.stdout + dry.stderr


@pytest.mark.parametrize(("key", "module"), [("wandb_project", "wandb"), ("tensorboard", "tensorboard")])
def test_a_sink_that_is_not_installed_is_a_configuration_error(
    key: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    logging_section = {"directory": str(tmp_path), key: "tiny" if key == "wandb_project" else True}
    config = make_config(tmp_path, logging=logging_section)
    run = RunDirectory.create(config, source=None, verb="train")
    with pytest.raises(ConfigError, match=rf"logging\.{key} is .* but {module} is not installed: pip install"):
        build_sinks(config, run=run)


WANDB_GOES_ON = """
import logging, sys
from pathlib import Path
from megarl.telemetry.cut_back import cut_back
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import build_sinks
from tests.telemetry.runs import make_config
directory, after_step = Path(sys.argv[1]), int(sys.argv[2])
config = make_config(directory, logging={"directory": str(directory), "wandb_project": "tiny"})
run = RunDirectory.open(directory / "latest") if after_step else RunDirectory.create(config, source=None, verb="train")
cut_back(run, step=after_step)
sinks = build_sinks(config, run=run, after_step=after_step)
for step in range(after_step + 1, after_step + 3):
    sinks.log(step, {"reward/mean": 0.125 * step, "actor/entropy": float("nan") if step == 1 else 1.0})
sinks.close()
print(run.run_id)
"""


def wandb_rows(log: Path) -> list[tuple[int, float]]:
    """(step, reward/mean) of a file of wandb's: LevelDB's log format, a record of protobuf in one or more pieces."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, pieces, rows = log.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record.FromString(pieces)
            pieces = b""
            for item in record.history.item:
                if "reward/mean" in (item.key, *item.nested_key):
                    rows.append((record.history.step.num, float(item.value_json)))
    return rows


@pytest.mark.slow
def test_a_damaged_row_is_not_sent_again_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps no run from going on."""
    sent = []

    class Told(WandbSink):
        def __init__(self) -> None: ...

        def log(self, step: int, values: Mapping[str, float]) -> None:
            sent.append((step, dict(values)))

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "timestamp": 1.5, "x": null}\n{"step": 2, "x\n{"step": 3, "x": 3.0}\n')
    Told()._log_again(path, 3)
    assert [step for step, _ in sent] == [1, 3]
    assert math.isnan(sent[0][1]["x"])
    assert f"{path}, line 2 is not sent: expected a JSON object" in caplog.text


def test_wandb_offline_has_the_whole_run_in_one_file(tmp_path: Path) -> None:
    """Its steps after it went on twice, without a gap or a doubled one, and under its own id."""
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[2]
    for after_step in (0, 1, 2):
        command = [sys.executable, "-c", WANDB_GOES_ON, str(tmp_path / "runs"), str(after_step)]
        done = subprocess.run(
            command, env=environment, check=True, timeout=120, cwd=root, capture_output=True, text=True
        )
        (log,) = (tmp_path / "runs").glob("tiny-train-*/wandb/offline-run-*/run-*.wandb")
        assert log.name == f"run-{done.stdout.split()[-1]}.wandb"
        assert wandb_rows(log) == [(step, 0.125 * step) for step in range(1, after_step + 3)]
