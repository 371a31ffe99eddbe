"""What `megarl ablate` says before its first run, of room and hours, and after its last, of what they found."""

import json

import pyarrow.parquet as pq
import pytest

from tests.cli.test_ablate import StandIns, ablate, made, problems_of, stand_ins

__all__ = ["stand_ins"]


def test_room_and_hours_first_and_tables_last(stand_ins: StandIns) -> None:
    """Every stand-in logs a reward of 0.1 a step."""
    result = ablate("two.toml", "train.steps=2")
    assert result.exit_code == 0, result.output
    output = result.output
    assert "runs   4, 1 at a time\ndisk   " in output
    assert "time   not known until a first run has made its first steps" in output
    assert output.index("time   not known") < output.index("ablation  ")
    directory = made()
    table = pq.read_table(directory.table_path).to_pylist()
    assert [row["value"] for row in table if row["metric"] == "reward/mean"] == [0.1, 0.2] * 4
    summary = json.loads(directory.summary_path.read_text())
    assert (summary["left_out"], summary["steps"]) == ({}, [2])
    assert [one["measures"]["reward_end"]["value"] for one in summary["settings"]] == [0.2, 0.2]
    assert "two: 4 runs of 2 settings; 4 finished, at step 2" in output
    assert output.index("tables    ") > output.index("4 runs: 4 finished")


def test_runs_that_failed_are_told_below_the_table(stand_ins: StandIns) -> None:
    stand_ins.behaviour["highinf-seed1"] = {"fails": 9}
    result = ablate("two.toml", "train.steps=2", "retries=0")
    assert result.exit_code == 1, result.output
    assert "two: 4 runs of 2 settings; 3 finished, at step 2" in result.output
    assert "left out: highinf-seed1: failed after step 1" in result.output
    assert list(json.loads(made().summary_path.read_text())["left_out"]) == ["highinf-seed1"]


def test_what_is_left_is_told_where_an_ablation_goes_on(stand_ins: StandIns) -> None:
    """Three runs have their two steps; the fourth begins again after its first."""
    stand_ins.behaviour["highinf-seed1"] = {"fails": 1}
    assert ablate("two.toml", "train.steps=2", "retries=0").exit_code == 1
    result = ablate("--resume", str(made().path))
    assert result.exit_code == 0, result.output
    assert "runs   1, 1 at a time\ndisk   " in result.output
    result = ablate("--resume", str(made().path))
    assert "disk   " not in result.output  # nothing is left
    assert "two: 4 runs of 2 settings; 4 finished, at step 2" in result.output


def test_a_disk_that_is_too_small_is_refused(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the start of a run, but not for 4 x 3 checkpoints of some 10 MB."""
    usage = type("Usage", (), {"free": 70 << 20})
    monkeypatch.setattr("megarl.cli.ablation_costs.shutil.disk_usage", lambda path: usage)
    saving = ("checkpoint.every_steps=1", "checkpoint.keep_last=3", "train.steps=4")
    for more in ((), ("--dry-run",)):
        (problem,) = problems_of(ablate("two.toml", *saving, *more))
        assert "exports and checkpoints of all 4 runs take" in problem
    assert stand_ins.begun() == []
