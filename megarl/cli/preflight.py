"""What `train`, `sft` and `doctor` check in a moment, before anything heavy is imported: all problems in one error."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from megarl.cli.doctor_packages import detect_stack
from megarl.cli.machine_paths import find_path_problems
from megarl.cli.stack import deciding_versions, find_backend_problems, find_version_problems
from megarl.config.base import ConfigError
from megarl.config.preflight import find_file_problems
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.planning.checks import check_layout


def check_files(config: RunConfig, others: Iterable[str] = (), *, versions: bool = True) -> None:
    """Raise one ConfigError with everything wrong with the run's files, with the layout for its model, with where it
    writes, and with the packages it would run on.

    others: problems that only this verb has. versions: of packages too; doctor, which says them elsewhere, does not.
    """
    installed = deciding_versions()
    problems = [
        *(find_version_problems(installed) if versions else ()),
        *find_backend_problems(config, detect_stack(installed)),
        *find_file_problems(config),
        *_check_model(config),
        *find_path_problems(config),
        *others,
    ]
    if problems:
        raise ConfigError("\n".join(problems), problems)


def _check_model(config: RunConfig) -> Iterator[str]:
    """Of a directory that is there; its absence is a file's problem."""
    if not Path(config.model.path).is_dir():
        return
    try:
        shape = read_model_shape(config.model.path)
    except ModelError as error:
        yield f"model.path: {error}"
        return
    yield from check_layout(config, shape)
