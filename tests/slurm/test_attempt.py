"""What a job's script remembers of its attempts, on real run directories."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.slurm import attempt as module
from megarl.slurm.attempt import NOTHING_TO_DO, begin, describe_ending, end, main
from megarl.slurm.attempts import Attempt
from megarl.slurm.job_directory import RunOfJob, find_job, link_run
from megarl.telemetry.run_directory import RunDirectory, RunState, RunStatus
from tests.telemetry.runs import make_config


@pytest.fixture
def place(tmp_path: Path) -> RunOfJob:
    return RunOfJob(tmp_path / "jobs" / "one")


def make_run(place: RunOfJob, **sections: object) -> RunDirectory:
    run = RunDirectory.create(make_config(place.path.parents[1], **sections), source=None, verb="train")
    link_run(run.path, place.link)
    return run


def leave(place: RunOfJob, number: int, *, code: int | None, began: bool = True) -> None:
    """What the parts of an attempt leave in its logs."""
    logs = place.logs(number)
    logs.mkdir(parents=True, exist_ok=True)
    if began:
        (logs / "trainer.pid").write_text("4711\n")
    if code is not None:
        (logs / "trainer.exit").write_text(f"{code}\n")


def one_attempt(
    place: RunOfJob, status: RunStatus, *, code: int | None, step: int = 3, text: str | None = None, asked: bool = False
) -> Attempt:
    """An attempt that got as far as to write its state."""
    assert begin(place, 0, nodes="n[1-2]", job="7") == 0
    make_run(place).write_state(RunState(status=status, step=step, message=text))
    leave(place, 0, code=code)
    return describe_ending(place, place.read_attempts()[-1], asked=asked)


@pytest.mark.parametrize(
    ("status", "code", "asked", "ending"),
    [
        ("finished", 0, False, "finished"),
        ("finished", 0, True, "finished"),
        ("failed", 1, False, "crashed"),
        ("failed", 1, True, "crashed"),
        ("failed", 2, False, "refused"),
        ("interrupted", 130, True, "time limit"),
        ("interrupted", 130, False, "stopped"),
        ("running", None, True, "time limit"),
        ("running", None, False, "crashed"),
        ("running", 137, False, "crashed"),
    ],
)
def test_endings_are_told_apart(place: RunOfJob, status: RunStatus, code: int | None, asked: bool, ending: str) -> None:
    ended = one_attempt(place, status, code=code, asked=asked)
    assert (ended.ending, ended.step, ended.from_step) == (ending, 3, 0)
    assert ended.ended_s is not None


def test_the_runs_own_words_are_kept(place: RunOfJob) -> None:
    assert one_attempt(place, "failed", code=1, text="engine 0 died").text == "engine 0 died"


def test_a_silent_end_is_described_by_the_last_words_of_the_nodes(place: RunOfJob) -> None:
    assert begin(place, 0, nodes="n1", job="7") == 0
    leave(place, 0, code=None, began=False)
    (place.logs(0) / "n1.log").write_text("On head node.\nFailed to start Ray: port 10000 is in use\n\n")
    ended = describe_ending(place, place.read_attempts()[-1], asked=False)
    assert ended.ending == "unfit"
    assert ended.text.splitlines() == [
        "the trainer did not begin: the check of a node, or the start of Ray, did not end well",
        "n1: On head node.",
        "n1: Failed to start Ray: port 10000 is in use",
    ]
    leave(place, 0, code=139)
    assert describe_ending(place, ended, asked=False).text.startswith("the trainer ended with exit code 139\n")


def test_the_state_of_an_earlier_attempt_is_not_taken_for_this_ones(place: RunOfJob) -> None:
    run = make_run(place)
    run.write_state(RunState(status="failed", step=9, message="of yesterday"))
    os.utime(run.state_path, (1000.0, 1000.0))
    assert begin(place, 1, nodes="n1", job="7") == 0
    leave(place, 1, code=None, began=False)
    ended = describe_ending(place, place.read_attempts()[-1], asked=False)
    assert (ended.step, "yesterday" in ended.text) == (0, False)


def test_the_runs_own_clock_counts_as_the_time_limit_where_it_is_the_jobs(place: RunOfJob) -> None:
    text = "checkpoint.end_time is in 30 s, and another step needs 60 s: stopped after step 3, saved in x"
    for end_time, ending in (("slurm", "time limit"), ("2099-12-24T18:00:00+01:00", "stopped")):
        assert begin(place, 0, nodes="n1", job="7") == 0
        run = make_run(place, checkpoint={"end_time": end_time})
        run.write_state(RunState(status="interrupted", step=3, message=text))
        leave(place, 0, code=130)
        assert describe_ending(place, place.read_attempts()[-1], asked=False).ending == ending


def test_unfit_nodes_are_named_with_their_reasons(place: RunOfJob) -> None:
    assert begin(place, 0, nodes="n[1-2]", job="7") == 0
    leave(place, 0, code=None, began=False)
    (place.logs(0) / "n2.unfit").write_text("/data is not seen from this node\n")
    ended = describe_ending(place, place.read_attempts()[-1], asked=False)
    assert (ended.ending, ended.unfit) == ("unfit", ("n2",))
    assert ended.text == "n2: /data is not seen from this node"
    assert end(place, asked=False, restarts=5) == "requeue 60 n2"


def test_lines_for_the_script(place: RunOfJob, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--directory", str(place.path), "--attempt"]
    assert main(["begin", *common, "0", "--nodes", "n1", "--job", "7"]) == 0
    run = make_run(place)
    leave(place, 0, code=1)
    run.write_state(RunState(status="failed", step=2, message="engine 1 died"))
    assert main(["end", *common, "0", "--asked", "0", "--restarts", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "requeue 60\n"
    assert "attempt 0 of job 7 on n1: from the beginning" in shown.err
    assert "crashed after step 2: engine 1 died\nthe next attempt begins in 60 s" in shown.err
    assert main(["begin", *common, "1", "--nodes", "n1", "--job", "7"]) == 0
    leave(place, 1, code=1)
    run.write_state(RunState(status="failed", step=2, message="engine 0 died"))
    assert main(["end", *common, "1", "--asked", "0", "--restarts", "2"]) == 0
    assert capsys.readouterr().out == "stop\n"
    kept = place.read_attempts()
    assert [one.verdict[:20] for one in kept] == ["the next attempt beg", "step 3 failed twice "]


def test_a_finished_run_is_not_begun_again(place: RunOfJob) -> None:
    make_run(place).write_state(RunState(status="finished", step=9))
    assert begin(place, 1, nodes="n1", job="7") == NOTHING_TO_DO
    assert place.read_attempts() == []


def test_a_run_that_was_lost_too_often_is_not_begun_again(place: RunOfJob, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        assert begin(place, number, nodes="n1", job="7") == 0
    assert begin(place, 5, nodes="n1", job="7") == 1
    assert "no attempt 5: the last 5 attempts went on after step 0 and were lost" in capsys.readouterr().err


def test_attempts_are_read_as_they_were_written(place: RunOfJob) -> None:
    assert begin(place, 0, nodes="n1", job="7_1") == 0
    (written,) = place.read_attempts()
    changed = replace(written, ending="unfit", unfit=("n1", "n2"), text="ä", verdict="x")
    place.write_attempts([changed])
    assert place.read_attempts() == [changed]


def test_links_lead_from_a_job_to_its_run_and_back(tmp_path: Path) -> None:
    job = tmp_path / "jobs" / "sweep"
    places: Sequence[RunOfJob] = [RunOfJob(job / "cell-0"), RunOfJob(job / "cell-1")]
    runs = [make_run(place) for place in places]
    assert find_job(runs[0].path) is None
    (job / "job.json").write_text(json.dumps({"job": "7", "cells": [["a=1"], ["a=2"]]}))
    for place, run in zip(places, runs, strict=True):
        assert place.run() == run
        found = find_job(run.path)
        assert found is not None
        assert (found[0].path, found[1]) == (job, [place])
    whole = find_job(job)
    assert whole is not None
    assert whole[1] == places
    link_run(runs[1].path, places[0].link)  # again, elsewhere
    assert places[0].run() == runs[1]
    assert find_job(tmp_path) is None
    assert module.NOTHING_TO_DO == 3
