"""A run that a machine's fault has ended goes on by itself: real processes, with a stand-in for what they train."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from megarl.cli.restart import note_failure
from megarl.cli.run_again import find_program
from megarl.cli.status import run_status
from megarl.telemetry.keeper_file import KEEPER_VARIABLE
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.restarts import Restart, read_failures
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.run_lock import RunHeldError, hold_run
from megarl.telemetry.sinks import read_metrics
from tests.cli.restarting import GIVEN_FD
from tests.cli.resumable_runs import make_run
from tests.e2e.configuration import write_tiny_config
from tests.telemetry.runs import make_config

PROGRAM = Path(__file__).with_name("restarting.py")
SAVES = "checkpoint.every_steps=1"
AT_ONCE = "cluster.restart_pause_s=0"
TIMEOUT_S = 300


@contextmanager
def started(
    cwd: Path, model: Path, plan: str, *overrides: str, **given: Any
) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """(the run's process, the file of what it says)."""
    said = cwd / "said.txt"
    command = [sys.executable, str(PROGRAM), plan, "train", str(write_tiny_config(cwd, model)), *overrides]
    with TemporaryDirectory(prefix="megarl-", dir="/tmp") as scratch, said.open("w") as file:
        environment = os.environ | {"TMPDIR": scratch} | given.pop("env", {})
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=file, stderr=file, text=True, **given)
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def run_plan(cwd: Path, model: Path, plan: str, *overrides: str, **given: Any) -> tuple[int, str]:
    with started(cwd, model, plan, *overrides, **given) as (process, said):
        code = process.wait(TIMEOUT_S)
        text = said.read_text()
    assert "Traceback" not in text, text
    return code, text


def starts(cwd: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cwd / "starts.jsonl").read_text().splitlines()]


def latest(cwd: Path) -> RunDirectory:
    return RunDirectory.open(cwd / "runs" / "latest")


def test_it_goes_on_in_the_same_process_after_its_checkpoint_until_it_is_finished(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    env = {GIVEN_FD: str(write), KEEPER_VARIABLE: "/keeper"}
    code, said = run_plan(tmp_path, tiny_model_dir, "dies,dies,works", SAVES, AT_ONCE, pass_fds=[write], env=env)
    os.close(read), os.close(write)
    assert code == 0, said
    first, second, third = starts(tmp_path)
    run = latest(tmp_path)
    assert first["pid"] == second["pid"] == third["pid"]
    assert [start["after"] for start in (first, second, third)] == [None, 1, 2]
    assert second["arguments"] == third["arguments"] == ["train", "--resume", str(run.path)]
    # What the program has put into its environment, and opened to last, is gone; what it was given is not.
    assert [start["token"] for start in (first, second, third)] == [first["token"]] * 3
    assert [start["left"] for start in (first, second, third)] == [False] * 3
    assert [start["given"] for start in (first, second, third)] == [0] * 3
    # Its engines have ended with the failure.
    assert [start["keeper"] for start in (first, second, third)] == ["/keeper", None, None]
    assert "restart  in 0 s the run goes on after step 1 (restart 1 of at most 5)\n" in said
    assert "restart  in 0 s the run goes on after step 2 (restart 2 of at most 5)\n" in said
    assert said.count("failed: policy rank 1 died: process ") == 2
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]) == 1
    state = run.read_state()
    assert (state.status, state.step, state.message, state.goes_on_s) == ("finished", 3, None, None)
    assert [row["step"] for row in read_metrics(run.metrics_path)] == [1, 2, 3]
    assert [facts["after_step"] for facts in run.read_versions()["went_on"]] == [1, 2]
    assert [failure.step for failure in read_failures(run.restarts_path)] == [1, 2]
    assert run_status([run.path]) == 0
    shown = re.sub(r"\d+ (s|min) ago", "now", capsys.readouterr().out).splitlines()
    about = (
        r"now: failed after step {0}: policy rank 1 died: process \d+ is gone; in 0 s the run goes on after step {0} "
    )
    assert re.fullmatch(r"restarts   " + about.format(1) + r"\(restart 1 of at most 5\)", shown[3])
    assert re.fullmatch(r" {11}" + about.format(2) + r"\(restart 2 of at most 5\)", shown[4])


def test_one_step_that_fails_twice_in_one_way_ends_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    code, said = run_plan(tmp_path, tiny_model_dir, "dies,stuck", SAVES, AT_ONCE)
    assert code == 1
    assert "restart  step 2 failed twice in the same way; it would do so again\n" in said
    state = latest(tmp_path).read_state()
    assert (state.status, state.goes_on_s) == ("failed", None)
    assert latest(tmp_path).standing()[0] == "failed"


@pytest.mark.slow
def test_failures_are_counted_and_a_person_who_starts_it_again_begins_anew(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    code, said = run_plan(tmp_path, tiny_model_dir, "dies,stops-answering,dies", SAVES, AT_ONCE, "cluster.restarts=1")
    assert code == 1
    assert "restart  the run failed 2 times, of which cluster.restarts allows 1\n" in said
    run = latest(tmp_path)
    again = [sys.executable, str(PROGRAM), "_,_,dies,works", "train", "--resume", str(run.path)]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 0 s the run goes on after step 3 (restart 1 of at most 1)" in done.stdout
    failures = read_failures(run.restarts_path)
    assert [failure.step for failure in failures] == [1, 2, 3]
    assert len({failure.driver for failure in failures}) == 2


@pytest.mark.parametrize(
    ("plan", "code", "words"),
    [
        ("breaks", 1, None),
        pytest.param("no-room", 2, None, marks=pytest.mark.slow),
        pytest.param("refused", 2, None, marks=pytest.mark.slow),
        pytest.param("not-finite", 1, None, marks=pytest.mark.slow),
        pytest.param("asked", 1, None, marks=pytest.mark.slow),
        pytest.param(
            "unstarted", 1, "it failed before its first step, as a configuration does", marks=pytest.mark.slow
        ),
    ],
)
def test_what_would_repeat_itself_or_was_asked_to_stop_ends_the_run(
    plan: str, code: int, words: str | None, tmp_path: Path, tiny_model_dir: Path
) -> None:
    ended, said = run_plan(tmp_path, tiny_model_dir, plan, SAVES, AT_ONCE)
    assert ended == code
    assert len(starts(tmp_path)) == 1
    assert ("\nrestart  " in said) == (words is not None)
    assert words is None or words in said
    assert latest(tmp_path).standing()[0] == "failed"


def noted(run: RunDirectory, **sections: Any) -> Restart | None:
    run.write_state(RunState(status="running", step=3))
    return note_failure(make_config(run.path, **sections), run, "engine 0 died", began=True)


def test_only_a_run_that_saves_itself_and_may_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert noted(run) is None
    assert noted(run, checkpoint={"every_steps": 1}, cluster={"restarts": 0}) is None
    assert not run.restarts_path.exists()
    over = noted(run, checkpoint={"every_minutes": 30})
    assert over is not None
    assert over.pause_s == 60
    assert over.text.startswith("in 60 s the run starts over")
    (failure,) = read_failures(run.restarts_path)
    assert (failure.step, failure.text, failure.verdict) == (3, "engine 0 died", over.text)
    assert failure.driver == str(ProcessMark.of(os.getpid()))
    assert failure.goes_on_s == failure.at_s + 60
    run.restarts_path.unlink()
    (run.exports / "step-000003").mkdir()
    kept = noted(run, checkpoint={"every_steps": 1})
    assert kept is not None
    assert (kept.pause_s, "would take away the weights" in kept.text) == (None, True)
    run.restarts_path.write_text("[")
    damaged = noted(run, checkpoint={"every_steps": 1})
    assert damaged is not None
    assert (damaged.pause_s, "restarts.json is damaged" in damaged.text) == (None, True)


def test_a_checkpoint_that_a_signal_asked_for_is_gone_on_from_too(tmp_path: Path) -> None:
    restart = noted(make_run(tmp_path, 2))
    assert restart is not None
    assert restart.text == "in 60 s the run goes on after step 2 (restart 1 of at most 5)"


@pytest.mark.slow
def test_a_lost_node_is_waited_for_where_there_was_room_before(tmp_path: Path, tiny_model_dir: Path) -> None:
    code, said = run_plan(tmp_path, tiny_model_dir, "dies,no-room,dies,no-room,no-room", SAVES, AT_ONCE)
    assert code == 2
    assert said.count("failed: the Ray cluster cannot place") == 3
    assert "restart  in 0 s the run goes on after step 1 (restart 2 of at most 5)" in said
    assert "restart  step 3 failed twice in the same way; it would do so again" in said
    assert [failure.step for failure in read_failures(latest(tmp_path).restarts_path)] == [1, 1, 2, 2, 2]


def test_without_a_complete_checkpoint_it_starts_over_and_says_so(tmp_path: Path, tiny_model_dir: Path) -> None:
    code, said = run_plan(tmp_path, tiny_model_dir, "unsaved,works", "checkpoint.every_steps=2", AT_ONCE)
    assert code == 0
    assert "restart  in 0 s the run starts over: there is no complete checkpoint (restart 1 of at most 5)" in said
    assert "the run starts over at step 1, in the same directory" in said
    assert [row["step"] for row in read_metrics(latest(tmp_path).metrics_path)] == [1]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_pause(number: signal.Signals, tmp_path: Path, tiny_model_dir: Path) -> None:
    with started(tmp_path, tiny_model_dir, "dies", SAVES, "cluster.restart_pause_s=1000") as (process, said):
        wait_for(said, "restart  in 1000 s the run goes on after step 1")
        run = latest(tmp_path)
        status, message = run.standing()
        assert status == "running"
        assert re.match(r"it goes on at \d\d:\d\d:\d\d after: policy rank 1 died", message or "")
        with pytest.raises(RunHeldError, match=f"it is driven by process {process.pid}"):
            hold_run(run.path)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert "interrupted: stopped by a signal; megarl train --resume runs/" in said.read_text()
    assert "Traceback" not in said.read_text()
    state = run.read_state()
    assert (state.status, state.goes_on_s) == ("interrupted", None)
    assert (state.message or "").startswith("stopped by a signal; before that it had failed: policy rank 1 died")
    (failure,) = read_failures(run.restarts_path)
    assert (failure.goes_on_s, failure.verdict) == (None, "stopped by a signal")


@pytest.mark.slow
def test_one_that_is_killed_in_its_pause_has_failed(tmp_path: Path, tiny_model_dir: Path) -> None:
    with started(tmp_path, tiny_model_dir, "dies", SAVES, "cluster.restart_pause_s=1000") as (process, said):
        wait_for(said, "restart  in 1000 s")
        process.kill()
        process.wait()
    status, message = latest(tmp_path).standing()
    assert status == "failed"
    assert (message or "").startswith("policy rank 1 died")


@pytest.mark.slow
def test_one_that_cannot_go_on_says_why_and_has_failed(tmp_path: Path, tiny_model_dir: Path) -> None:
    """As where the disk of the checkpoints is gone after the pause."""
    with started(tmp_path, tiny_model_dir, "dies,works", SAVES, "cluster.restart_pause_s=3") as (process, said):
        wait_for(said, "restart  in 3 s")
        run = latest(tmp_path)
        run.checkpoints.rename(tmp_path / "gone")
        assert process.wait(TIMEOUT_S) == 2
    assert "is not there, where the run's checkpoints were" in said.read_text()
    assert len(starts(tmp_path)) == 1
    assert run.standing()[0] == "failed"


def test_the_lock_stays_with_a_process_that_becomes_another_program(tmp_path: Path) -> None:
    program = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from megarl.telemetry.run_lock import hold_run, keep_lock_over_exec\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "hold_run(Path(sys.argv[1]))\n"
        "keep_lock_over_exec(Path(sys.argv[1]))\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'print(7, flush=True); input()'])\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "7\n"
        with pytest.raises(RunHeldError, match=f"process {holder.pid} on {ProcessMark.of(os.getpid()).host}"):
            hold_run(tmp_path)
        holder.communicate("\n")
    hold_run(tmp_path)


@pytest.mark.parametrize(
    ("original", "program"),
    [
        (["python", "/env/bin/megarl", "train", "a.toml"], ["/env/bin/megarl"]),
        (["python", "-X", "dev", "-m", "megarl.cli.main", "train", "a.toml"], ["-X", "dev", "-m", "megarl.cli.main"]),
        (["python", "other.py", "its", "own", "words"], ["-m", "megarl.cli.main"]),
        ([], ["-m", "megarl.cli.main"]),
    ],
)
def test_the_program_is_the_one_that_was_typed(original: list[str], program: list[str]) -> None:
    assert find_program(original, ["megarl", "train", "a.toml"]) == program


def wait_for(said: Path, words: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while words not in said.read_text():
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
