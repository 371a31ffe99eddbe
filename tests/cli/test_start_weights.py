"""Beginning with the weights of a run's checkpoint: found, compared with the model, pinned."""

from pathlib import Path

import pytest

from megarl.checkpoint.manifest import describe_model
from megarl.checkpoint.run_checkpoint import PendingCheckpoint
from megarl.cli.start_weights import find_start, find_start_problems, pin_start
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.telemetry.run_directory import RunDirectory
from tests.checkpoint.manifests import make_manifest
from tests.telemetry.runs import make_config


def make_run(parent: Path, model: Path, *steps: int) -> RunDirectory:
    config = make_config(parent, model={"path": str(model)})
    run = RunDirectory.create(config, source=None, verb="train")
    shape = describe_model(read_model_shape(model))
    for step in steps:
        pending = PendingCheckpoint(run.checkpoints, step=step)
        pending.begin()
        pending.complete(make_manifest(pending.path, config, step=step, model=shape))
    return run


def begin_from(path: Path, model: Path, parent: Path) -> RunConfig:
    return make_config(parent, model={"path": str(model)}, train={"init_from": str(path)})


def test_a_run_is_pinned_to_the_checkpoint_that_it_had(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path / "runs", tiny_model_dir, 4, 8)
    newest = run.checkpoints / "step-000008"
    for path, expected in (
        (run.path, newest),
        (tmp_path / "runs" / "latest", newest),
        (run.path / "latest", newest),
        (run.checkpoints / "step-000004", run.checkpoints / "step-000004"),
    ):
        config = begin_from(path, tiny_model_dir, tmp_path)
        start = find_start(config)
        assert start is not None
        assert start.path == expected
        assert pin_start(config, start).train.init_from == str(expected)
        assert list(find_start_problems(config)) == []


def test_a_checkpoint_outside_of_a_run_will_do(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path / "runs", tiny_model_dir, 4)
    moved = (run.checkpoints / "step-000004").rename(tmp_path / "kept")
    start = find_start(begin_from(moved, tiny_model_dir, tmp_path))
    assert start is not None
    assert start.path == moved


def test_without_it_a_run_begins_with_the_model(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert find_start(config) is None
    assert pin_start(config, None) is config


def test_what_cannot_be_begun_with_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    from make_tiny_model import make_tiny_model

    empty = make_run(tmp_path / "empty", tiny_model_dir)
    other = make_tiny_model(tmp_path / "other", layers=2)
    run = make_run(tmp_path / "runs", tiny_model_dir, 4)
    for path, model, said in (
        (tmp_path / "nowhere", tiny_model_dir, "does not exist; expected a directory that `megarl train` made"),
        (empty.path, tiny_model_dir, "has no complete checkpoint in"),
        (run.path, other, "is of another model than model.path: num_layers: expected 2, found 4"),
    ):
        (problem,) = find_start_problems(begin_from(path, model, tmp_path))
        assert problem.startswith("train.init_from: ")
        assert said in problem


def test_a_model_that_cannot_be_read_is_not_told_twice(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path / "runs", tiny_model_dir, 4)
    assert list(find_start_problems(begin_from(run.path, tmp_path / "absent", tmp_path))) == []


@pytest.mark.parametrize("verb", ["train", "sft"])
def test_only_what_reads_it_is_stopped_by_it(verb: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    from typer.testing import CliRunner

    from megarl.cli.main import app
    from tests.e2e.configuration import write_tiny_config

    config = write_tiny_config(tmp_path, tiny_model_dir)
    arguments = [verb, str(config), f"train.init_from={tmp_path / 'nowhere'}", f"model.path={tmp_path / 'absent'}"]
    done = CliRunner().invoke(app, arguments)
    assert ("train.init_from" in str(done.exception)) == (verb == "train")
    assert "model.path" in str(done.exception)
