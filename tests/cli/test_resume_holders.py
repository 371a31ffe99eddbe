"""Whose a run is: one process drives it at a time."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.cli import resume as module
from megarl.cli.resume import Arguments, resume
from megarl.config.loader import load_config
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.run_lock import RunHeldError
from tests.cli.resumable_runs import go_on, make_run, refusal, write_driver

RESUME = """
import sys
from pathlib import Path
from megarl.cli.resume import Arguments, resume
from megarl.config.base import ConfigError
try:
    print(resume(Path(sys.argv[1]), Arguments.of(None, [], []))[1].step, flush=True)
    sys.stdin.read()
except ConfigError as error:
    print(error, flush=True)
"""


def test_of_two_that_go_on_with_a_run_at_once_one_does(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RESUME, str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    said = [one.stdout.readline().strip() for one in both if one.stdout]  # both are there: neither ends before
    for one in both:
        one.communicate("")
    assert said.count("4") == 1
    (refused,) = set(said) - {"4"}
    assert refused.startswith(f"megarl train --resume {run.path}: {run.path} is still running: it is driven by ")
    assert refused.endswith("; stop it first")


def test_a_run_that_runs_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    run.write_state(RunState(status="running", step=4))
    said = refusal(run.path)
    assert f"is still running: it is driven by process {os.getpid()} on " in said
    assert said.endswith("stop it first")


def test_a_run_whose_process_is_gone_goes_on_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    write_driver(run, replace(ProcessMark.of(os.getpid()), started=1))
    assert go_on(run.path).step == 4


def test_a_run_of_another_machine_is_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, 4)
    write_driver(run, replace(ProcessMark.of(os.getpid()), host="node7", boot="another"))
    monkeypatch.setattr(module, "PULSE_S", 0.1)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    assert go_on(run.path).step == 4
    assert f"for a sign of life of process {os.getpid()} on node7" in capsys.readouterr().out
    monkeypatch.setattr(module, "PULSE_S", 10.0)
    monkeypatch.setattr(module.time, "sleep", lambda _: os.utime(run.state_path))  # it lives
    assert f"is still running: it is driven by process {os.getpid()} on node7; stop it first" in refusal(run.path)


HOLD = """
import sys, time
from pathlib import Path
from megarl.telemetry.run_lock import hold_run

hold_run(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[[float], RunDirectory]]:
    """A run that another process drives for so long."""
    holders: list[subprocess.Popen[str]] = []

    def hold(seconds: float) -> RunDirectory:
        run = make_run(tmp_path, 4)
        command = [sys.executable, "-c", HOLD, str(run.path), str(seconds)]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]))
        assert holders[0].stdout is not None
        assert holders[0].stdout.readline() == "held\n"
        return run

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_who_is_about_to_end_is_waited_for(
    held: Callable[[float], RunDirectory], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a job is back on its nodes before its last attempt has saved and stopped."""
    run = held(3.0)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    _, going = resume(run.path, Arguments(config=None, overrides=(), allowed=()), patient=True)
    assert going.step == 4
    within_s = load_config(run.config_path).checkpoint.stop_within_s + 60
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith(
        f"waiting, for {within_s:g} s at most, until {run.path} has stopped: it is driven by process"
    )


def test_who_does_not_end_is_not_waited_for_longer(
    held: Callable[[float], RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = held(600.0)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(module, "_patience_s", lambda _: 0.3)
    with pytest.raises(RunHeldError, match=r"still running after 0\.3 s: it is driven by process \d+ .*; stop it"):
        resume(run.path, Arguments(config=None, overrides=(), allowed=()), patient=True)
