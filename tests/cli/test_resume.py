"""Which run goes on, and from where: settled before anything of it is touched."""

import json
import shutil
from pathlib import Path

import pytest

from megarl.checkpoint.manifest import MANIFEST_FILE
from megarl.cli.resume import find_checkpoint
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.checkpoint.manifests import FILE
from tests.cli.resumable_runs import go_on, make_run, refusal, save
from tests.telemetry.runs import make_config, make_row, write_metrics


def test_a_run_is_found_by_each_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", 4, 12)
    monkeypatch.chdir(tmp_path)
    newest = run.checkpoints / "step-000012"
    for name in (run.path, run.path / "latest", "runs/latest", "runs/latest/latest", run.checkpoints, newest):
        found, checkpoint = find_checkpoint(Path(name))
        assert found.path == run.path
        assert checkpoint is not None
        assert (checkpoint.path, checkpoint.step) == (newest, 12)


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    shutil.copytree(run.checkpoints / "step-000004", run.checkpoints / ".step-000008.partial")
    (run.checkpoints / "step-000009").mkdir()
    assert go_on(run.path).step == 4
    assert "manifest.json is missing" in refusal(run.checkpoints / "step-000009")


def test_an_earlier_checkpoint_is_gone_on_from_when_the_newer_ones_are_out_of_the_way(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4, 8, 12)
    earlier = run.checkpoints / "step-000004"
    said = refusal(earlier)
    assert "newer checkpoints" in said
    assert "step-000008, " in said
    assert "step-000012" in said
    assert "remove or move them first" in said
    for name in ("step-000008", "step-000012"):
        (run.checkpoints / name).rename(tmp_path / name)
    assert go_on(earlier).step == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "does not exist; expected a directory that `megarl train` made"),
        ("empty", r"is no run directory: it has no state\.json"),
        (
            "stray",
            r"lies in no run directory; put it back .* or begin a new run from its weights with train\.init_from",
        ),
    ],
)
def test_what_is_no_run_is_refused(name: str, said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", 4)
    (tmp_path / "empty").mkdir()
    shutil.copytree(run.checkpoints / "step-000004", tmp_path / "stray")
    with pytest.raises(ConfigError, match=said):
        find_checkpoint(tmp_path / name)


def test_a_warm_start_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="sft")
    with pytest.raises(ConfigError, match="is a run of `megarl sft`, which saves only its last weights"):
        find_checkpoint(run.path)


def test_without_a_complete_checkpoint_it_starts_over_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run.metrics_path, [make_row(1), make_row(2)])
    going = go_on(run.path, "policy.optimizer.lr=1e-3")  # no step was made that another rate would contradict
    assert (going.step, going.checkpoint) == (0, None)
    assert going.about[0].startswith("resume no complete checkpoint in ")
    assert going.about[0].endswith("the run starts over at step 1, in the same directory")
    assert going.about[1:] == ("change policy.optimizer.lr: 1e-06 -> 0.001",)
    going.open(load_config(run.config_path), sources=[])
    assert going.cut_back() == ["cut    metrics.jsonl: 2 rows beyond step 0"]
    assert run.metrics_path.read_bytes() == b""
    assert run.read_state() == RunState(status="running", step=0)


def test_a_finished_run_that_saved_nothing_is_not_begun_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run.metrics_path, [make_row(1), make_row(2)])
    rows = run.metrics_path.read_bytes()
    (run.exports / "step-000002").mkdir(parents=True)
    run.write_state(RunState(status="finished", step=2))
    said = refusal(run.path, "train.steps=31")
    assert "is finished, and saved nothing to go on from" in said
    assert said.endswith(f"with model.path={run.exports / 'step-000002'}")
    assert run.metrics_path.read_bytes() == rows


def test_a_run_is_not_started_over_while_it_has_something_to_go_on_from(tmp_path: Path) -> None:
    """Its rows, rollouts and exports would be taken away for a checkpoint that is damaged, or of a later version."""
    run = make_run(tmp_path / "runs", 4, 8)
    write_metrics(run.metrics_path, [make_row(1), make_row(2)])
    rows = run.metrics_path.read_bytes()
    newer = run.checkpoints / "step-000008" / MANIFEST_FILE
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": 99}))
    (run.checkpoints / "step-000004" / FILE).unlink()
    (run.checkpoints / ".step-000012.partial").mkdir()  # of a save that was cut short: nothing to go on from
    said = refusal(run.path)
    assert "checkpoints has step-000004, step-000008, none of which can be gone on from; move them away" in said
    assert f"{FILE}: expected 7 bytes, found none" in said
    assert "has format 99, this version of megarl reads 1; use the version that wrote it" in said
    shutil.move(run.checkpoints, tmp_path / "elsewhere")
    for link in (False, True):
        if link:
            run.checkpoints.symlink_to(tmp_path / "not mounted")
        said = refusal(run.path)
        assert "checkpoints is not there, where the run's checkpoints were: put it back, or mount the disk" in said
    assert run.metrics_path.read_bytes() == rows
    run.checkpoints.unlink()
    run.checkpoints.mkdir()
    assert go_on(run.path).checkpoint is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Of the same configuration, too: its rows are others."""
    run, other = make_run(tmp_path / "runs"), make_run(tmp_path / "others")
    config = load_config(run.config_path)
    save(run, 4, config, telemetry={"id": run.run_id})
    assert go_on(run.path).step == 4
    save(other, 8, config, telemetry={"id": other.run_id})
    foreign = run.checkpoints / "step-000008"
    shutil.copytree(other.checkpoints / "step-000008", foreign)
    for path in (run.path, foreign):
        said = refusal(path)
        assert f"step-000008 is of another run (its id is {other.run_id}, that of this one {run.run_id})" in said
        assert f"train.init_from={foreign}" in said


def test_checkpoints_may_lie_on_another_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", 4, 8)
    disk = tmp_path / "disk"
    shutil.move(run.checkpoints, disk)
    run.checkpoints.symlink_to(disk)
    newest = run.checkpoints / "step-000008"
    for path in (run.path, run.checkpoints, newest, tmp_path / "runs" / "latest" / "checkpoints" / "step-000008"):
        found, checkpoint = find_checkpoint(path)
        assert found.path == run.path
        assert checkpoint is not None
        assert checkpoint.path == newest
    # One that is a link itself is of the run that it stands in, not of the one that it leads to.
    other = make_run(tmp_path / "others", 12)
    (run.checkpoints / "step-000012").symlink_to(other.checkpoints / "step-000012")
    assert find_checkpoint(run.checkpoints / "step-000012")[0].path == run.path


@pytest.mark.parametrize("name", ["state.json", "versions.json"])
def test_a_damaged_or_absent_file_of_the_run_is_named(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    (run.path / name).write_text("")
    said = refusal(run.path)
    assert said.startswith(f"megarl train --resume {run.path}: {run.path / name} is damaged: expected a JSON object")
    (run.path / name).unlink()
    assert name in refusal(run.path)
