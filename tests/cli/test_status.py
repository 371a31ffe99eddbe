"""`megarl status` on jobs and runs as they are found on the disk."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.checkpoint.run_checkpoint import PendingCheckpoint, RunCheckpoint
from megarl.cli.status import run_status
from megarl.config.base import ConfigError
from megarl.slurm.attempt import begin
from megarl.slurm.job_directory import JobDirectory, RunOfJob, link_run
from megarl.slurm.queue import Queued
from megarl.telemetry.heartbeat import Heartbeat, ProcessBeat, write_heartbeat
from megarl.telemetry.restarts import Failure, write_failures
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.ablation.directories import begin_run, make_directory
from tests.checkpoint.manifests import make_manifest
from tests.telemetry.runs import make_config

WAITING = Queued(state="PENDING", elapsed="0:00", limit="30:00", nodes="", reason="BeginTime", start="N/A")
RUNNING = Queued(state="RUNNING", elapsed="1:02", limit="30:00", nodes="n[1-2]", reason="None", start="N/A")


def queue_is(monkeypatch: pytest.MonkeyPatch, queue: dict[str, Queued] | None) -> None:
    monkeypatch.setattr("megarl.cli.status.has_slurm", lambda: queue is not None)
    monkeypatch.setattr("megarl.cli.status.find_queued", lambda job: queue)


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    directory = tmp_path / "jobs" / "one"
    directory.mkdir(parents=True)
    made = JobDirectory(directory)
    made.write({"job": "7", "submitted": "", "command": "megarl submit", "cells": []})
    return made


def make_run(place: RunOfJob, name: str = "tiny") -> RunDirectory:
    root = place.path.parents[1] / "runs"
    run = RunDirectory.create(make_config(root, name=name), source=None, verb="train")
    link_run(run.path, place.link)
    return run


def make_checkpoint(run: RunDirectory, *, step: int) -> RunCheckpoint:
    pending = PendingCheckpoint(run.checkpoints, step=step)
    pending.begin()
    return pending.complete(make_manifest(pending.path, make_config(run.path), step=step))


def test_a_job_that_waits_for_its_first_attempt(
    job: JobDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_is(monkeypatch, {"7": WAITING})
    assert run_status([job.path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job        7 PENDING (BeginTime)",
        "attempt    none yet",
        f"run        not begun; logs in {job.path}",
    ]
    queue_is(monkeypatch, {})
    assert run_status([job.path]) == 1
    assert capsys.readouterr().out.startswith("job        7 no longer in the queue\n")


def test_a_run_in_its_second_attempt(
    job: JobDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_is(monkeypatch, {"7": RUNNING})
    place = RunOfJob(job.path)
    begin(place, 0, nodes="n[1-2]", job="7")
    begin(place, 1, nodes="n[1-2]", job="7")
    run = make_run(place)
    run.write_state(RunState(status="running", step=12))
    saved = make_checkpoint(run, step=10)
    ago = time.time() - 300
    os.utime(saved.path, (ago, ago))
    assert run_status([run.path]) == 0  # by the run's own link
    assert re.sub(r"\b[0-5] s ago", "now", capsys.readouterr().out).splitlines() == [
        "job        7 RUNNING 1:02 of 30:00 on n[1-2]",
        "attempt    1 on n[1-2], begun now",
        "           0: lost, it went on after step 0",
        f"run        {run.path}",
        "step       12 of 100, running",
        "heartbeat  now",
        "checkpoint step 10, 5 min ago",
    ]


def test_a_run_that_failed_is_well_only_while_something_is_queued_that_goes_on(
    job: JobDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(RunOfJob(job.path))
    run.write_state(RunState(status="failed", step=2, message="engine 0 died"))
    queue_is(monkeypatch, {"7": WAITING})
    assert run_status([job.path]) == 0
    assert "step       2 of 100, failed: engine 0 died\n" in capsys.readouterr().out
    queue_is(monkeypatch, {})
    assert run_status([job.path]) == 1
    queue_is(monkeypatch, None)
    assert run_status([job.path]) == 1
    assert "job        7 (no Slurm on this machine)" in capsys.readouterr().out


def test_a_run_whose_job_was_cancelled_does_not_run(
    job: JobDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(RunOfJob(job.path)).write_state(RunState(status="running", step=2))
    queue_is(monkeypatch, {"7": replace(RUNNING, state="CANCELLED")})
    assert run_status([job.path]) == 1
    assert "step       2 of 100, killed: it ended with its job\n" in capsys.readouterr().out


def test_a_heartbeat_says_what_the_driver_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    driver = ProcessBeat(role="controller", rank=0, node="n1", pid=1, phase="update", for_s=1.0, silent_s=0.0, step=3)
    beat = Heartbeat(written_s=time.time() - 300, step=3, steps=100, processes=(driver,))
    write_heartbeat(run.heartbeat_path, beat)
    assert run_status([run.path]) == 0
    assert "heartbeat  5 min ago: update\n" in capsys.readouterr().out
    run.heartbeat_path.write_text("[")
    assert run_status([run.path]) == 0
    assert f"heartbeat  {run.heartbeat_path}" in capsys.readouterr().out


def test_a_sweep_has_a_block_for_every_cell(
    job: JobDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write({"job": "7", "submitted": "", "command": "", "cells": [["train.seed=0"], ["train.seed=1"]]})
    queue_is(monkeypatch, {"7_0": RUNNING, "7_1": WAITING})
    make_run(RunOfJob(job.path / "cell-0"))
    assert run_status([job.path]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("job        7_0 RUNNING 1:02 of 30:00 on n[1-2]  train.seed=0\n")
    assert second.startswith("job        7_1 PENDING (BeginTime)  train.seed=1\n")
    assert run_status([job.path / "cell-1"]) == 0
    assert "7_0" not in capsys.readouterr().out


def test_a_run_that_was_not_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    assert run_status([tmp_path / "latest"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["job        none: the run was not submitted", f"run        {run.path}"]
    assert shown[-1] == "checkpoint none"


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} is neither a run, nor a job, nor an ablation"):
        run_status([tmp_path])


def test_failures_after_which_a_run_went_on_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    ago = time.time() - 300
    failures = [
        Failure(
            at_s=ago, step=4, text="policy rank 1 died\nEnd of its log", driver="x", goes_on_s=ago, verdict="goes on"
        ),
        Failure(at_s=ago, step=6, text="engine 0 hangs", driver="x", verdict="it ends"),
    ]
    write_failures(run.restarts_path, failures)
    assert run_status([run.path]) == 0
    shown = capsys.readouterr().out
    assert "restarts   5 min ago: failed after step 4: policy rank 1 died; goes on\n" in shown
    assert "           5 min ago: failed after step 6: engine 0 hangs; it ends\n" in shown
    # While its process waits it is well.
    run.write_state(RunState(status="failed", message="engine 0 hangs", goes_on_s=time.time() + 60))
    assert run_status([run.path]) == 0
    assert "running: it goes on at " in capsys.readouterr().out
    run.write_state(RunState(status="failed", message="engine 0 hangs"))
    assert run_status([run.path]) == 1
    run.restarts_path.write_text("[")
    assert run_status([run.path]) == 1
    assert f"restarts   {run.restarts_path} is damaged" in capsys.readouterr().out


def test_a_cell_that_cannot_be_read_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_directory(tmp_path)
    first, second, third, _ = directory.plan().cells
    begin_run(directory, first, RunState(status="finished")).state_path.write_text('{"stat')
    begin_run(directory, second, RunState(status="finished")).config_path.unlink()
    begin_run(directory, third, RunState(status="finished", step=3))
    assert run_status([directory.path]) == 1
    shown = capsys.readouterr().out
    assert re.search(rf"cell       {first.name}: unknown: .*state\.json is damaged", shown)
    assert re.search(rf"cell       {second.name}: unknown: .*config\.toml", shown)
    assert f"cell       {third.name}: finished" in shown
    directory.plan_path.write_text('{"version": 1, "settings": [3]}')
    with pytest.raises(ConfigError, match=r"ablation\.json is damaged"):
        run_status([directory.path])
