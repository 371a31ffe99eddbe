"""`train.init_from`: the checkpoint of a run whose weights another one begins with."""

from collections.abc import Iterator
from pathlib import Path

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import check_model
from megarl.checkpoint.run_checkpoint import RunCheckpoint, newest_checkpoint
from megarl.cli.run_paths import find_run, open_checkpoint
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError


def find_start(config: RunConfig) -> RunCheckpoint | None:
    """What `train.init_from` means: the checkpoint, or the newest of the run. None where it is not set.

    ConfigError where there is no complete one, or where it is of another model than `model.path`.
    """
    if config.train.init_from is None:
        return None
    try:
        checkpoint = _open(Path(config.train.init_from))
        check_model(checkpoint.manifest, read_model_shape(Path(config.model.path)), str(checkpoint.path))
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(f"train.init_from: {error}") from error
    return checkpoint


def find_start_problems(config: RunConfig) -> Iterator[str]:
    """Why `find_start` would refuse it; a model that cannot be read is said by others."""
    try:
        find_start(config)
    except ConfigError as error:
        yield str(error)
    except (ModelError, OSError):
        return


def pin_start(config: RunConfig, start: RunCheckpoint | None) -> RunConfig:
    """The configuration with the very checkpoint in the place of a run that has newer ones tomorrow."""
    if start is None:
        return config
    train = config.train.model_copy(update={"init_from": str(start.path)})
    return config.model_copy(update={"train": train})


def _open(path: Path) -> RunCheckpoint:
    run, named = find_run(path)
    if named is not None:
        return open_checkpoint(named)
    assert run is not None, "a path without a checkpoint names a run"
    newest = newest_checkpoint(run.checkpoints)
    if newest is None:
        raise ConfigError(f"{path} has no complete checkpoint in {run.checkpoints}; use another run")
    return newest
