"""Under which configuration a run goes on."""

import shutil
from pathlib import Path

from megarl.checkpoint.manifest import describe_config
from megarl.cli.machine_paths import find_path_problems
from megarl.cli.resume import Arguments, resume
from megarl.config.loader import load_config
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.versions import collect_versions
from tests.cli.resumable_runs import go_on, make_run, refusal, save
from tests.telemetry.runs import make_config


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


def test_a_head_that_was_decided_is_not_decided_again(tmp_path: Path) -> None:
    """A configuration that leaves it open is that of the run, whatever GPUs are here now."""
    model = {"path": str(tmp_path / "model")}
    run = make_run(tmp_path, 4, config=make_config(tmp_path, model=model, policy={"head": "fused"}))
    config, going = resume(run.path, Arguments(config=None, overrides=("policy.head=auto",), allowed=()))
    assert config.policy.head == "fused"
    assert going.changes == ()
    config, going = resume(run.path, Arguments(config=None, overrides=("policy.head=logits",), allowed=()))
    assert config.policy.head == "logits"
    assert going.changes == ('policy.head: "fused" -> "logits"',)


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
