"""`megarl top` as a command: once, and on a real terminal until a key or a signal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, CellFacts, Setting
from megarl.cli.top import look, run_top
from megarl.cli.top_places import find_places
from megarl.config.base import ConfigError
from megarl.slurm.job_directory import JobDirectory, RunOfJob, link_run
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.cli.test_top_watch import log_steps
from tests.telemetry.runs import make_config

COMMAND = [sys.executable, "-m", "megarl.cli.main", "top"]


def make_run(parent: Path, name: str = "tiny", *, status: str = "running", step: int = 3) -> RunDirectory:
    run = RunDirectory.create(make_config(parent, name=name), source=None, verb="train")
    log_steps(run, range(1, step + 1))
    run.write_state(RunState(status=status, step=step))  # type: ignore[arg-type]
    return run


def test_once_prints_a_frame_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert run_top([tmp_path / "latest"], once=False, every_s=2.0) == 0  # standard output is no terminal
    shown = capsys.readouterr().out
    assert shown.startswith(run.path.name)
    assert "step 3 of 100" in shown
    assert "\x1b" not in shown
    assert "q quits" not in shown
    assert run_top([run.path], once=True, every_s=2.0) == 0
    assert capsys.readouterr().out.splitlines()[1:] == shown.splitlines()[1:]


def test_several_runs_are_named_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, name).path for name in ("low", "high", "high")]
    places, title = find_places(paths)
    assert [place.label for place in places] == ["low", paths[1].name, paths[2].name]
    assert title == "megarl top"
    assert not look(places, title).alone


def test_what_is_no_run_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is neither a run, a job nor an ablation"):
        run_top([tmp_path], once=True, every_s=2.0)


def test_a_sweep_of_a_job(tmp_path: Path) -> None:
    job = JobDirectory(tmp_path / "jobs" / "sweep")
    job.path.mkdir(parents=True)
    job.write({"job": "7", "submitted": "", "command": "", "cells": [["train.seed=0"], ["train.seed=1"]]})
    run = make_run(tmp_path / "runs")
    link_run(run.path, RunOfJob(job.path / "cell-0").link)
    places, title = find_places([job.path])
    found = look(places, title).runs
    assert [(one.label, one.standing, one.step) for one in found] == [
        ("sweep/cell-0", "running", 3),
        ("sweep/cell-1", "waiting", 0),
    ]
    assert find_places([run.path])[0][0].label == run.path.name  # the run itself, though it is a job's


def make_ablation(path: Path) -> AblationDirectory:
    cells = tuple(
        Cell(index=number, name=f"a-seed{number}", setting="a", seed=number, run=f"cells/a-seed{number}")
        for number in range(4)
    )
    plan = AblationPlan(name="clip", settings=(Setting(name="a"),), cells=cells)
    return AblationDirectory.create(path, plan, source="")


def test_an_ablation_has_a_line_for_every_cell(tmp_path: Path) -> None:
    ablation = make_ablation(tmp_path / "clip-ablation")
    run = make_run(ablation.runs, "a-seed0", status="finished")
    (ablation.path / "cells" / "a-seed0").symlink_to(run.path)
    failed = CellFacts(status="failed", attempts=2, message="no such file")
    facts = {"a-seed1": failed, "a-seed2": CellFacts(status="running")}
    ablation.write_cells(facts, ProcessMark.of(os.getpid()))
    places, title = find_places([ablation.path])
    found = [(one.label, one.standing, one.message) for one in look(places, title).runs]
    assert found == [
        ("a-seed0", "finished", ""),
        ("a-seed1", "failed", "no such file"),
        ("a-seed2", "running", ""),
        ("a-seed3", "waiting", ""),
    ]
    later = make_run(ablation.runs, "a-seed3", step=5)
    (ablation.path / "cells" / "a-seed3").symlink_to(later.path)
    warm = make_run(tmp_path / "warm-runs", "warm", status="finished")
    assert look(places, title).runs[3].step == 5
    ablation.warm.symlink_to(warm.path)
    begun = look(places, title).runs
    assert [(one.label, one.standing) for one in begun[:2]] == [("warm start", "finished"), ("a-seed0", "finished")]
    ablation.cells_path.write_text("[")
    assert look(places, title).runs[2].standing == "unknown"
    ablation.plan_path.write_text("{}")
    with pytest.raises(ConfigError, match="expected version 1"):
        find_places([ablation.path])


class Screen:
    """A `megarl top` on a terminal of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", terminal: int) -> None:
        self.process, self.terminal = process, terminal
        self.shown = ""

    def wait_for(self, pattern: str, *, count: int = 1, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while len(re.findall(pattern, self.shown)) < count:
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.shown[-3000:]!r}"
            try:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError as error:  # the other end is closed
                raise AssertionError(self.shown) from error

    def drain(self) -> None:
        while select.select([self.terminal], [], [], 0.2)[0]:
            try:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError:
                return


@contextmanager
def on_terminal(*arguments: str, width: int = 80, height: int = 24, term: str = "xterm-256color") -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (height, width))
    environment = os.environ | {"TERM": term}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    try:
        yield Screen(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_a_terminal_follows_the_run_until_q(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with on_terminal(str(run.path), "--every", "0.5") as screen:
        before = termios.tcgetattr(screen.terminal)[3]
        screen.wait_for("step 3 of 100")
        assert "\x1b[?1049h" in screen.shown  # a screen of its own
        assert not termios.tcgetattr(screen.terminal)[3] & termios.ECHO
        log_steps(run, range(4, 6))
        screen.wait_for("step 5 of 100")
        termios.tcsetwinsize(screen.terminal, (24, 140))
        screen.wait_for("reward .*seconds a step, by phase")  # beside the curves
        os.write(screen.terminal, b"xq")
        assert screen.process.wait(timeout=10) == 0
        screen.drain()
        assert "\x1b[?1049l" in screen.shown  # and what was there before
        assert "Traceback" not in screen.shown
        assert "\x1b[2J" not in screen.shown.partition("step 3")[2]  # it is never wiped: no flicker
        assert termios.tcgetattr(screen.terminal)[3] == before | termios.ECHO | termios.ICANON


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_as_q_does(tmp_path: Path, number: signal.Signals) -> None:
    run = make_run(tmp_path)
    with on_terminal(str(run.path)) as screen:
        screen.wait_for("step 3 of 100")
        screen.process.send_signal(number)
        assert screen.process.wait(timeout=10) == 0
        screen.drain()
        assert "\x1b[?1049l" in screen.shown
        assert "Traceback" not in screen.shown
        assert termios.tcgetattr(screen.terminal)[3] & termios.ECHO


def test_a_log_gets_one_frame_whatever_colours_are_forced(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    done = subprocess.run(
        [*COMMAND, str(run.path)], env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "step 3 of 100" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_terminal_without_a_cursor_gets_one_frame(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with on_terminal(str(run.path), term="dumb") as screen:
        screen.wait_for("checkpoint none")
        assert screen.process.wait(timeout=10) == 0
        assert "\x1b" not in screen.shown


def test_once_on_a_terminal_ends_by_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with on_terminal(str(run.path), "--once") as screen:
        screen.wait_for("checkpoint none")
        assert screen.process.wait(timeout=10) == 0
        assert "\x1b[?1049h" not in screen.shown
