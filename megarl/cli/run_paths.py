"""Which run, and which of its checkpoints, a path of the command line or of a configuration means."""

from pathlib import Path

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import MANIFEST_FILE
from megarl.checkpoint.run_checkpoint import RunCheckpoint
from megarl.config.base import ConfigError
from megarl.telemetry.run_directory import RunDirectory

_LATEST, _CHECKPOINTS = "latest", "checkpoints"


def find_run(path: Path) -> tuple[RunDirectory | None, Path | None]:
    """(the run, the checkpoint that was named; None: none was). The run is None where a checkpoint lies outside of one.

    path: a run directory or a link to one (runs/latest), RUN/latest, RUN/checkpoints, or a checkpoint. ConfigError
    where it is none of them.
    """
    given = path.expanduser().absolute()
    found = given.resolve()
    # As it was given first: RUN/checkpoints, or one of them, may be a link to another disk.
    for place in (given, found):
        of_run = place.parent if place.name in (_LATEST, _CHECKPOINTS) else place
        in_run = place.parent.name == _CHECKPOINTS
        for run, named in ((place, None), (of_run, None), (place.parent.parent, place.name)):
            if (named is None or in_run) and (run / "state.json").is_file():
                directory = RunDirectory(run.resolve())
                return directory, None if named is None else directory.checkpoints / named
    if (found / MANIFEST_FILE).is_file():
        return None, found
    what = "is no run directory: it has no state.json" if found.exists() else "does not exist"
    raise ConfigError(
        f"{path} {what}; expected a directory that `megarl train` made, RUN/latest, or one of RUN/{_CHECKPOINTS}"
    )


def open_checkpoint(path: Path) -> RunCheckpoint:
    """ConfigError, naming the file, where it is not complete."""
    try:
        return RunCheckpoint.open(path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
