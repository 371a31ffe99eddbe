"""A run directory is made once, says how it was made, and survives a crash at any moment."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.config.loader import load_config
from megarl.telemetry import run_directory as module
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, RunState, judge_running
from megarl.telemetry.versions import git_state
from tests.telemetry.runs import make_config


def test_create_lays_out_the_run(tmp_path: Path) -> None:
    source = tmp_path / "tiny.toml"
    source.write_text('# why this run\nname = "tiny"\n')
    config = make_config(tmp_path / "runs")
    run = RunDirectory.create(config, source=source, verb="train")
    assert run.path.parent == tmp_path / "runs"
    assert run.path.name.startswith("tiny-train-20")
    assert {entry.name for entry in run.path.iterdir()} == {
        *("config.toml", "config.source", "versions.json", "state.json"),
        *("rollouts", "checkpoints", "hf", "logs", "figures"),
    }
    assert (run.path / "config.source").read_text() == source.read_text()
    assert load_config(run.config_path) == config  # inf included
    assert run.rollouts_path(12) == run.path / "rollouts" / "step-000012.parquet"
    assert run.log_path("policy", 3) == run.path / "logs" / "policy-3.log"
    versions = run.read_versions()
    assert versions["verb"] == "train"
    assert versions["packages"]["megarl"]
    assert versions["packages"]["pyarrow"]
    assert versions["command"]
    assert versions["cpus"] >= 1


def test_fragments_are_kept_in_order(tmp_path: Path) -> None:
    source, *fragments = (tmp_path / name for name in ("run.toml", "b.toml", "a.toml"))
    for file in (source, *fragments):
        file.write_text(f"# {file.name}\n")
    run = RunDirectory.create(make_config(tmp_path / "runs"), source=source, fragments=fragments, verb="train")
    assert (run.path / "config.source").read_text() == "# run.toml\n"
    assert (run.path / "config.source.1-b.toml").read_text() == "# b.toml\n"
    assert (run.path / "config.source.2-a.toml").read_text() == "# a.toml\n"
    assert run.read_versions()["fragments"] == [str(fragment) for fragment in fragments]


def test_runs_of_the_same_second_never_share_a_directory(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: RunDirectory.create(config, source=None, verb="train"), range(16)))
    assert len({run.path for run in runs}) == 16
    assert (tmp_path / "latest").is_symlink()
    assert RunDirectory.open(tmp_path / "latest").path in {run.path for run in runs}


def test_create_never_writes_into_an_existing_directory(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    taken = [run.path.name, f"{run.path.name}-2"]
    (tmp_path / taken[1]).mkdir()
    assert module.make_numbered(tmp_path, run.path.name).name == f"{run.path.name}-3"
    assert list((tmp_path / taken[1]).iterdir()) == []


def test_latest_points_at_the_newest_and_a_real_directory_of_that_name_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path)
    RunDirectory.create(config, source=None, verb="sft")
    newest = RunDirectory.create(config, source=None, verb="train")
    assert (tmp_path / "latest").resolve() == newest.path
    assert not Path(os.readlink(tmp_path / "latest")).is_absolute()  # the parent can be moved
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    RunDirectory.create(config, source=None, verb="train")
    assert not (tmp_path / "latest").is_symlink()
    assert "is no symbolic link" in caplog.text


def test_state_round_trip_and_atomic_replacement(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    assert run.read_state() == RunState(status="running")
    state = RunState(status="interrupted", step=7, progress={"step": 7, "order": [3, 1]}, message="SIGTERM")
    run.write_state(state)
    assert RunDirectory.open(run.path).read_state() == state
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_state(RunState(status="running", step=8, progress={"x": float("nan")}))
    assert run.read_state() == state
    assert json.loads(run.state_path.read_text())["updated"]
    assert [name for name in os.listdir(run.path) if "partial" in name] == []


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run directory: it has no state\.json"):
        RunDirectory.open(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state_sees_revision_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    assert git_state(tmp_path) is None  # __init__.py is not tracked: somebody else's checkout
    (tmp_path / "__init__.py").write_text("")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    revision = git("rev-parse", "HEAD").strip()
    assert git_state(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "new.py").write_text("")
    assert git_state(tmp_path) == {"revision": revision, "dirty": True}


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    assert run.standing() == ("running", None)
    code = (
        "import os, sys; from megarl.telemetry.run_directory import *; run = RunDirectory.open(sys.argv[1]);"
        "run.write_state(RunState(status='running', step=3)); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert done.returncode == -9
    status, message = run.standing()
    assert status == "killed"
    assert message is not None
    assert "was killed" in message
    assert run.read_state().status == "running"  # what the file says; nobody could change it
    run.write_state(RunState(status="failed", step=3, message="why"))
    assert run.standing() == ("failed", "why")


def test_a_run_on_another_machine_is_judged_by_its_last_sign_of_life() -> None:
    elsewhere = replace(ProcessMark.of(os.getpid()), host="another", boot="another")
    assert judge_running(elsewhere, age_s=300.0) == ("running", None)
    status, message = judge_running(elsewhere, age_s=7200.0)
    assert status == "killed"
    assert message == (
        f"its process {os.getpid()} on another has given no sign of life for 120 minutes; it cannot be looked up from "
        "here"
    )
    assert judge_running(None, age_s=7200.0)[0] == "killed"  # of an earlier version of megarl


def test_the_pulse_touches_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULSE_S", 0.05)
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    os.utime(run.state_path, (0, 0))
    with run.pulse():
        deadline = time.monotonic() + 5
        while run.state_path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert run.state_path.stat().st_mtime > 0


def test_a_run_goes_on_in_its_own_directory(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = RunDirectory.create(config, source=None, verb="train")
    run.write_state(RunState(status="failed", step=5, message="the disk is full"))
    other = RunDirectory.create(config, source=None, verb="train")
    was = run.config_path.read_text()
    state = RunState(status="running", step=4, progress={"step": 4})
    run.go_on(config, before=config, state=state)
    assert run.read_state() == state
    assert run.standing() == ("running", None)
    assert run.driver() == ProcessMark.of(os.getpid())
    assert RunDirectory.open(tmp_path / "latest").path == run.path
    assert run.config_path.read_text() == was
    assert [entry.name for entry in run.path.glob("config.*")] == ["config.toml"]
    versions = run.read_versions()
    assert versions["id"] == run.run_id != other.run_id
    assert [(facts["after_step"], facts["changes"]) for facts in versions["went_on"]] == [(4, [])]
    assert versions["went_on"][0]["command"]
    assert versions["went_on"][0]["packages"]["megarl"]


def test_a_configuration_that_held_up_to_a_step_is_kept(tmp_path: Path) -> None:
    configs = [make_config(tmp_path, train={"steps": steps}) for steps in (10, 20, 30)]
    run = RunDirectory.create(configs[0], source=None, verb="train")
    state = RunState(status="running", step=4)
    changes = ["train.steps: 10 -> 20"]
    run.go_on(configs[1], before=configs[0], state=state, changes=changes, sources=[tmp_path / "b.toml"])
    assert load_config(run.config_path) == configs[1]
    assert load_config(run.path / "config.step-000004.toml") == configs[0]
    # It died before the next checkpoint: no step was made under the second one.
    run.go_on(configs[2], before=configs[0], state=state)
    assert load_config(run.config_path) == configs[2]
    assert load_config(run.path / "config.step-000004.toml") == configs[0]
    went_on = run.read_versions()["went_on"]
    assert [facts["changes"] for facts in went_on] == [["train.steps: 10 -> 20"], []]
    assert [facts["source"] for facts in went_on] == [str(tmp_path / "b.toml"), None]


def test_a_run_that_starts_over_has_no_earlier_configuration(tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    shutil.rmtree(run.rollouts)
    config = make_config(tmp_path, train={"steps": 20})
    run.go_on(config, before=load_config(run.config_path), state=RunState(status="running"))
    assert [entry.name for entry in run.path.glob("config.*")] == ["config.toml"]
    assert run.rollouts.is_dir()


def test_what_is_kept_held_up_to_its_step(tmp_path: Path) -> None:
    """Also where the run goes on from an earlier checkpoint than the last time."""
    first, second = (make_config(tmp_path, train={"steps": steps}) for steps in (10, 20))
    run = RunDirectory.create(first, source=None, verb="train")
    run.go_on(second, before=first, state=RunState(status="running", step=12))
    run.go_on(second, before=first, state=RunState(status="running", step=8))
    assert [entry.name for entry in run.path.glob("config.step-*")] == ["config.step-000008.toml"]
    assert load_config(run.path / "config.step-000008.toml") == first
    run.go_on(second, before=second, state=RunState(status="running", step=14))
    run.go_on(first, before=first, state=RunState(status="running", step=4))
    assert list(run.path.glob("config.step-*")) == []
    assert load_config(run.config_path) == first


def test_a_process_that_was_killed_while_it_moved_latest_is_no_hindrance(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = RunDirectory.create(config, source=None, verb="train")
    (tmp_path / f".latest.{run.path.name}.partial").symlink_to(run.path.name)
    RunDirectory.create(config, source=None, verb="train")
    run.go_on(config, before=config, state=RunState(status="running", step=1))
    assert RunDirectory.open(tmp_path / "latest").path == run.path
    assert not list(tmp_path.glob(".latest*"))


def test_a_run_goes_on_where_latest_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path)
    run = RunDirectory.create(config, source=None, verb="train")

    def refuse(self: Path, target: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run.go_on(config, before=config, state=RunState(status="running", step=1))
    assert f"{tmp_path / 'latest'} is left as it is: Permission denied" in caplog.text


@pytest.mark.parametrize("content", ["", "\0\0\0", "[]", "{}", '{"step": 3'])
def test_a_damaged_file_of_its_own_is_named(content: str, tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    for path, read, key in (
        (run.state_path, run.read_state, "status"),
        (run.state_path, run.driver, "status"),
        (run.versions_path, run.read_versions, "verb"),
    ):
        path.write_text(content)
        said = f'{path} is damaged: expected a JSON object with a "{key}", found '
        with pytest.raises(ValueError, match=re.escape(said)):
            read()
