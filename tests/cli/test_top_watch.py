"""`megarl top` on the files of runs: as they grow, are replaced, half written or gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megarl.checkpoint.run_checkpoint import PendingCheckpoint
from megarl.cli.top_frame import Frame, RunFrame
from megarl.cli.top_screen import frame_lines
from megarl.cli.top_watch import Changed, RunWatch
from megarl.telemetry.heartbeat import Heartbeat, ProcessBeat, write_heartbeat
from megarl.telemetry.restarts import Failure, write_failures
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import JsonlSink
from tests.checkpoint.manifests import make_manifest
from tests.cli.top_frames import make_beat
from tests.telemetry.runs import make_config, make_row


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(make_config(tmp_path, train={"steps": 40}), source=None, verb="train")


def log_steps(run: RunDirectory, steps: range) -> None:
    sink = JsonlSink(run.metrics_path)
    for step in steps:
        sink.log(step, {name: value for name, value in make_row(step).items() if value is not None})
    sink.close()


def beat(run: RunDirectory, *processes: ProcessBeat, age_s: float = 1.0) -> None:
    driver = make_beat("controller", node=socket.gethostname(), pid=os.getpid(), phase="update")
    heartbeat = Heartbeat(written_s=time.time() - age_s, step=3, steps=40, processes=(driver, *processes))
    write_heartbeat(run.heartbeat_path, heartbeat)


def watch(run: RunDirectory, *, alone: bool = True) -> RunWatch:
    return RunWatch(run, "tiny", alone=alone)


def curve(frame: RunFrame, label: str) -> list[tuple[float, float]]:
    return list(next(curve for curve in frame.curves if curve.label == label).points)


def test_a_run_from_its_first_moment_to_its_end(run: RunDirectory) -> None:
    looking = watch(run)
    frame = looking.look()
    assert (frame.standing, frame.step, frame.steps, frame.curves, frame.step_s) == ("running", 0, 40, (), None)
    assert frame.checkpoint == "none"
    assert frame.beat_age_s is None

    log_steps(run, range(1, 4))
    beat(run, make_beat())
    run.write_state(RunState(status="running", step=3))
    frame = looking.look()
    assert (frame.step, frame.steps, frame.step_s, frame.tokens_per_s) == (3, 40, 40.0, 1234.5)
    assert frame.left_s == pytest.approx(37 * 40.0, abs=5)
    assert frame.phases == (
        ("generate", 20.0), ("reward", 1.0), ("old_logp", 3.0), ("update", 14.0), ("publish", 1.5), ("other", 0.5),
    )  # fmt: skip
    assert curve(frame, "entropy") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert curve(frame, "clip high %") == [(1, 0.2), (2, 0.2), (3, 0.2)]
    assert frame.doing == "update"
    assert frame.beat_age_s == pytest.approx(1.0, abs=2)
    assert [process.mark for process in frame.processes] == ["", ""]

    log_steps(run, range(4, 41))
    run.write_state(RunState(status="finished", step=40))
    frame = looking.look()
    assert (frame.standing, frame.step, frame.left_s) == ("finished", 40, None)
    assert frame.problems == ()


def test_checkpoints_restarts_and_warnings(run: RunDirectory) -> None:
    looking = watch(run)
    looking.look()
    pending = PendingCheckpoint(run.checkpoints, step=10)
    pending.begin()
    saved = pending.complete(make_manifest(pending.path, make_config(run.path), step=10))
    ago = time.time() - 300
    os.utime(saved.path, (ago, ago))
    failure = Failure(at_s=ago, step=12, text="engine 0 died\nits log", driver="", verdict="in 60 s the run goes on")
    write_failures(run.restarts_path, [failure])
    run.log_path("rollout", 0).write_text("2026-11-29 10:00:00,000 WARNING rollout-0 megarl.x: slow disk\n")
    frame = looking.look()
    assert frame.checkpoint == "step 10, 5 min ago"
    assert frame.restarts == ("5 min ago: failed after step 12: engine 0 died; in 60 s the run goes on",)
    assert [warning.text for warning in frame.warnings] == ["slow disk"]


def test_an_evaluation_counts_into_the_seconds_of_a_step(run: RunDirectory) -> None:
    sink = JsonlSink(run.metrics_path)
    for step in range(1, 11):
        sink.log(step, {"timing_s/step": 4.0} | ({"timing_s/eval": 10.0} if step % 5 == 0 else {}))
    frame = watch(run).look()
    assert frame.step_s == 6.0
    assert dict(frame.phases)["eval"] == 2.0


def test_a_process_of_this_machine_that_is_stopped_or_gone(run: RunDirectory) -> None:
    run.write_state(RunState(status="running", step=3))
    node, absent = socket.gethostname(), 2**22 + 1
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sleeping:
        try:
            there = make_beat(rank=0, node=node, pid=sleeping.pid)
            gone, elsewhere = make_beat(rank=1, node=node, pid=absent), make_beat(rank=2, node="another", pid=absent)
            beat(run, there, gone, elsewhere)
            looking = watch(run)
            assert [process.mark for process in looking.look().processes] == ["", "", "gone", ""]
            sleeping.send_signal(signal.SIGSTOP)
            deadline_s = time.monotonic() + 10
            while looking.look().processes[1].mark != "stopped (by SIGSTOP)":
                assert time.monotonic() < deadline_s
        finally:
            sleeping.kill()


def test_a_driver_that_is_held_up_and_one_that_pauses(run: RunDirectory) -> None:
    beat(run, make_beat(silent_s=50.0), age_s=60.0)
    marks = [process.mark for process in watch(run).look().processes]
    assert marks == ["no heartbeat for 60 s", "no answer for 50 s"]
    run.write_state(RunState(status="failed", step=3, message="engine 0 died", goes_on_s=time.time() + 60))
    frame = watch(run).look()
    assert frame.standing == "running"
    assert frame.message.startswith("it goes on at ")
    assert [process.mark for process in frame.processes] == ["", ""]


def test_a_run_that_was_killed(run: RunDirectory) -> None:
    code = (
        "import sys; from megarl.telemetry.run_directory import *; "
        "RunDirectory.open(sys.argv[1]).write_state(RunState(status='running', step=2))"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    beat(run, make_beat(pid=2**22 + 1, node=socket.gethostname()))
    frame = watch(run).look()
    assert frame.standing == "killed"
    assert "is gone and could not say why" in frame.message
    assert [process.mark for process in frame.processes] == ["", ""]


@pytest.mark.parametrize("alone", [True, False])
def test_files_that_are_damaged_or_gone_cost_a_line(run: RunDirectory, alone: bool) -> None:
    log_steps(run, range(1, 4))
    beat(run, make_beat())
    looking = watch(run, alone=alone)
    assert looking.look().problems == ()
    run.heartbeat_path.write_text("[")
    run.restarts_path.write_text("{")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "rew')
    frame = looking.look()
    assert frame.step == 3
    assert f"{run.heartbeat_path} is no heartbeat of a run: " in "".join(frame.problems)
    assert (len(frame.restarts) == 1) == alone
    run.state_path.write_text('{"status"')
    assert looking.look().standing == "unknown"
    for path in (run.state_path, run.heartbeat_path, run.metrics_path, run.config_path, run.restarts_path):
        path.unlink()
    frame = looking.look()
    assert (frame.standing, frame.message, frame.curves) == ("unknown", "state.json is gone", ())
    assert frame.problems == ()
    run.write_state(RunState(status="finished", step=40))
    log_steps(run, range(1, 3))
    frame = looking.look()
    assert frame.standing == "finished"
    assert len(curve(frame, "reward")) == 2


def test_the_steps_of_a_supervised_run(tmp_path: Path) -> None:
    config = make_config(tmp_path, sft={"steps": 70, "batch_examples": 8})
    assert watch(RunDirectory.create(config, source=None, verb="sft")).look().steps == 70


def test_what_has_not_changed_is_not_read_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    log_steps(run, range(1, 4))
    beat(run, make_beat())
    looking = watch(run)
    looking.look()
    read: list[str] = []
    taken = Path.read_text

    def noting(self: Path, *arguments: object, **options: object) -> str:
        read.append(self.name)
        return taken(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", noting)
    looking.look()
    # Of processes, and restarts.json, which is not there.
    assert set(read) <= {"boot_id", "stat", "restarts.json"}
    run.write_state(RunState(status="running", step=3))
    looking.look()
    assert "state.json" in read


def test_what_could_not_be_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("half")
    changed = Changed(path, lambda: int(path.read_text()))
    for _ in range(2):
        with pytest.raises(ValueError, match="half"):
            changed.look()
    path.write_text("12")
    assert changed.look() == 12
    path.unlink()
    assert changed.look() is None


def test_a_whole_frame_is_drawn(run: RunDirectory) -> None:
    log_steps(run, range(1, 4))
    beat(run, make_beat())
    frame = Frame(title="", at="12:00:00", runs=(watch(run).look(),), alone=True)
    lines = [line.plain for line in frame_lines(frame, width=80, height=24)]
    assert any(line.startswith("reward         0.500 ▁") for line in lines)
