"""Which run goes on, from where and under which configuration: settled before anything of it is touched."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megarl.checkpoint.manifest import MANIFEST_FILE, describe_config
from megarl.checkpoint.run_checkpoint import PendingCheckpoint, RunCheckpoint
from megarl.cli import resume as module
from megarl.cli.machine_paths import find_path_problems
from megarl.cli.resume import Arguments, Resumed, find_checkpoint, resume
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.controller.progress import RunProgress
from megarl.telemetry import run_directory
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.versions import collect_versions
from tests.checkpoint.manifests import FILE, make_manifest
from tests.telemetry.runs import make_config, make_row, write_metrics


def make_run(parent: Path, *steps: int, config: RunConfig | None = None) -> RunDirectory:
    """A run of this process's past that was killed after some steps; it has checkpoints of these."""
    config = config or make_config(parent, model={"path": str(parent / "model")}, train={"steps": 30})
    run = RunDirectory.create(config, source=None, verb="train")
    for step in steps:
        save(run, step, config)
    run.write_state(RunState(status="interrupted", step=max(steps, default=0)))
    return run


def save(run: RunDirectory, step: int, made_with: RunConfig, **changes: Any) -> RunCheckpoint:
    pending = PendingCheckpoint(run.checkpoints, step=step)
    pending.begin()
    return pending.complete(make_manifest(pending.path, made_with, step=step, **changes))


def go_on(path: Path, *overrides: str, allowed: tuple[str, ...] = (), config: Path | None = None) -> Resumed:
    return resume(path, Arguments(config=config, overrides=overrides, allowed=allowed))[1]


def refusal(path: Path, *overrides: str, allowed: tuple[str, ...] = (), config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        go_on(path, *overrides, allowed=allowed, config=config)
    return str(caught.value)


# From where


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


# Whose it is

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
    assert f"is still running (process {os.getpid()} on " in said
    assert said.endswith("stop it first")


def write_driver(run: RunDirectory, mark: ProcessMark) -> None:
    facts = json.loads(run.state_path.read_text())
    run.state_path.write_text(json.dumps(facts | {"status": "running", "driver": mark.as_json()}))


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
    assert f"is still running (process {os.getpid()} on node7); stop it first" in refusal(run.path)


# Under which configuration


def test_nothing_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    config, going = resume(run.path, Arguments(config=None, overrides=(), allowed=()))
    assert config == load_config(run.config_path)
    assert going.about == (f"resume after step 4 of 30, from {run.checkpoints / 'step-000004'}",)
    assert going.changes == ()


def test_safe_changes_are_taken_and_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    going = go_on(run.path, "train.steps=60", "parallel.world_size=2", "logging.tensorboard=true")
    assert going.about[1:] == (
        "change parallel.world_size: 1 -> 2 (taken; from here on equal to a run without the change but for rounding)",
        "change train.steps: 30 -> 60 (taken)",
        "change logging.tensorboard: false -> true (taken)",
    )


def test_others_are_refused_all_at_once_unless_they_are_allowed(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    changes = ("policy.optimizer.lr=1e-3", "objective.clip.low=0.1", "train.steps=60")
    said = refusal(run.path, *changes)
    assert said.splitlines()[1:] == [
        f"{change}: the run would go on as another one; set it back, or allow it with --allow-change "
        f"{change.partition(':')[0]}"
        for change in ("policy.optimizer.lr: 1e-06 -> 0.001", "objective.clip.low: 1.0 -> 0.1")
    ]
    going = go_on(run.path, *changes, allowed=("policy.optimizer", "objective.clip.low"))
    assert "change policy.optimizer.lr: 1e-06 -> 0.001 (allowed)" in going.about
    assert going.allowed == ("policy.optimizer", "objective.clip.low")
    assert "there is no such field" in refusal(run.path, allowed=("train.stepz",))


def test_what_was_allowed_need_not_be_said_again_until_a_checkpoint_has_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    path, lr = run.path, ("policy.optimizer.lr=1e-3",)
    config, going = resume(path, Arguments(config=None, overrides=lr, allowed=("policy.optimizer.lr",)))
    going.open(config, sources=[])
    run.write_state(RunState(status="failed", step=5))
    again = go_on(path)  # its own configuration is the changed one now
    assert again.about[1:] == ("change policy.optimizer.lr: 1e-06 -> 0.001 (allowed)",)
    assert "policy.optimizer.lr: 1e-06 -> 0.01" not in refusal(path, "train.seed=3")
    save(run, 6, config)
    assert go_on(path).about[1:] == ()
    # It allows no further change of the same field.
    assert "policy.optimizer.lr: 0.001 -> 1e-06" in refusal(path, "policy.optimizer.lr=1e-6")


def test_a_configuration_of_its_own_is_compared_too(tmp_path: Path) -> None:
    config = make_config(tmp_path, model={"path": str(tmp_path / "model")}, data={
        "train": {"source": "reasoning_gym", "task": "chain_sum"}, "date": "2026-11-27"
    })  # fmt: skip
    run = make_run(tmp_path, 4, config=config)
    given = tmp_path / "given.toml"
    text = "\n".join(line for line in run.config_path.read_text().splitlines() if not line.startswith("date"))
    given.write_text(text)
    loaded, going = resume(run.path, Arguments(config=given, overrides=("name=other",), allowed=()))
    assert loaded.data.date == "2026-11-27"  # the day that its prompts show stays
    assert going.about[1:] == ('change name: "tiny" -> "other" (taken)',)


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4, 12)
    assert "train.steps 8: the run has finished step 12; raise it, or go on from an earlier checkpoint in " in refusal(
        run.path, "train.steps=8"
    )
    assert go_on(run.path, "train.steps=12").step == 12


def test_the_first_override_may_stand_in_the_place_of_the_configuration() -> None:
    def parse(config: str | None, *overrides: str) -> tuple[Path | None, tuple[str, ...]]:
        arguments = Arguments.of(None if config is None else Path(config), overrides, ())
        return arguments.config, arguments.overrides

    assert parse(None) == (None, ())
    assert parse("train.steps=60", "name=x") == (None, ("train.steps=60", "name=x"))
    assert parse("run.toml", "train.steps=60") == (Path("run.toml"), ("train.steps=60",))
    assert Arguments.of(Path("a.toml"), ["b.toml", "name=x"], ()).sources == [Path("a.toml"), Path("b.toml")]


def test_other_packages_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    config = load_config(run.config_path)
    versions = collect_versions()
    packages = versions["packages"] | {"torch": "1.0", "gone": "3"}
    save(run, 4, config, versions=versions | {"packages": packages})
    torch = versions["packages"]["torch"]
    assert go_on(run.path).about[1:] == (
        "warning: gone was 3 when the checkpoint was written and is absent: the run may not go on exactly",
        f"warning: torch was 1.0 when the checkpoint was written and is {torch}: the run may not go on exactly",
    )


def test_other_code_of_our_own_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    versions = collect_versions()
    save(run, 4, load_config(run.config_path), versions=versions | {"git": {"revision": "0a1b", "dirty": False}})
    now = versions["git"]["revision"] if versions["git"] else "absent"
    assert go_on(run.path).about[1:] == (
        f"warning: the revision of megarl was 0a1b when the checkpoint was written and is {now}: the run may not go on "
        "exactly",
    )


def test_a_configuration_that_is_not_read_any_more_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    config = load_config(run.config_path)
    save(run, 4, config, config=describe_config(config)[0] | {"critic": {}})
    said = refusal(run.path)
    assert "has a configuration that this version of megarl does not read" in said
    assert "critic" in said


def test_files_are_checked_where_the_run_lies(tmp_path: Path) -> None:
    """Not where a new one would be made: a run may have been moved, and what was there before be gone."""
    run = make_run(tmp_path / "runs", 4)
    moved = tmp_path / "moved"
    shutil.move(run.path, moved)
    (tmp_path / "runs" / "latest").unlink()
    (tmp_path / "runs").rmdir()
    (tmp_path / "runs").write_text("a file")
    config, going = resume(moved, Arguments.of(None, [], []))
    assert any("logging.directory" in problem for problem in find_path_problems(config))
    assert not [problem for problem in find_path_problems(going.placed(config)) if "logging.directory" in problem]
    going.open(config, sources=[])
    assert RunDirectory.open(moved).read_state().step == 4


# What it does then


def test_it_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run.metrics_path, [make_row(step) for step in range(1, 7)])
    size = len("".join(line + "\n" for line in run.metrics_path.read_text().splitlines()[:4]))
    config = load_config(run.config_path)
    save(run, 4, config, telemetry={"bytes": {"metrics.jsonl": size, "updates.jsonl": 7}})
    loaded, going = resume(run.path, Arguments(config=None, overrides=("train.steps=60",), allowed=()))
    assert run.read_state().status == "interrupted"  # nothing was touched yet
    directory = going.open(loaded, sources=[])
    assert directory.path == run.path
    assert run.read_state() == RunState(
        status="running", step=4, progress=RunProgress(step=4, policy_version=4).state_dict()
    )
    assert going.cut_back() == [
        "cut    metrics.jsonl: 2 rows beyond step 4",
        "warning: updates.jsonl has 0 bytes of the steps up to 4, but had 7 when the checkpoint was written: it was "
        "edited, or rows were lost with the machine",
    ]
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2, 3, 4]
    assert run.read_versions()["went_on"][0]["changes"] == ["train.steps: 30 -> 60"]


def test_going_on_that_was_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any of its writes, three times in a row: nothing has to be said twice, and nothing is lost."""
    finished = 0
    for killed_after in range(8):
        run = make_run(tmp_path / str(killed_after), 4)
        first = load_config(run.config_path)
        arguments = Arguments(config=None, overrides=("policy.optimizer.lr=1e-3",), allowed=("policy.optimizer.lr",))
        for attempt in range(3):
            config, going = resume(run.path, arguments if attempt == 0 else Arguments.of(None, [], []))
            writes = 0

            def write(path: Path, text: str, limit: int = killed_after) -> None:
                nonlocal writes
                if writes == limit:
                    raise KeyboardInterrupt
                writes += 1
                write_text_atomically(path, text)

            with monkeypatch.context() as patched:
                patched.setattr(run_directory, "write_text_atomically", write)
                with suppress(KeyboardInterrupt):
                    going.open(config, sources=[])
                    finished += attempt == 0
            write_driver(run, replace(ProcessMark.of(os.getpid()), started=1))
        config, going = resume(run.path, Arguments.of(None, [], []))
        going.open(config, sources=[])
        assert run.read_state().step == 4
        taken = config.policy.optimizer.lr == 1e-3
        assert load_config(run.config_path) == config
        kept = [load_config(path) for path in run.path.glob("config.step-*")]
        assert kept == ([first] if taken else [])
        assert taken == (killed_after >= 4)  # state, versions, the old configuration, the new one
        assert not list(run.path.glob("*.partial"))
    assert finished == 4


def test_a_file_that_was_cut_short_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, 4, 8)
    file = run.checkpoints / "step-000008" / FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert go_on(run.path).step == 4
    assert f"passed over: {run.checkpoints / 'step-000008'} is damaged: {file.name}: expected" in caplog.text
    assert f"{file.name}: expected" in refusal(run.checkpoints / "step-000008")


def ask(*arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "megarl.cli.main", "train", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.replace("\n", " ")


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    code, said = ask("--resume", str(run.path), "train.seed=1", cwd=tmp_path)
    assert code == 2
    assert "train.seed: 0 -> 1: the run would go on as another one" in said
    assert ask(cwd=tmp_path) == (
        2,
        "megarl train: expected a CONFIG file or --resume RUN; e.g. megarl train configs/quickstart.toml ",
    )
    code, said = ask("x.toml", "--allow-change", "train.seed", cwd=tmp_path)
    assert (code, "nothing to change without --resume RUN" in said) == (2, True)
