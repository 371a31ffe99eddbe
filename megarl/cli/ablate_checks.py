"""What is refused before the first run of an ablation begins: files, layouts and the machine, of every setting."""

from collections.abc import Iterator

from megarl.ablation.cells import Ablation, group_problems
from megarl.cli.preflight import check_files
from megarl.cli.train_checks import find_train_problems
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig


def check_ablation(ablation: Ablation) -> None:
    """ConfigError with everything that is wrong with the runs, each problem once with the settings that have it."""
    found = [(run.cell.setting, list(_find_problems(run.config))) for run in ablation.first_runs]
    if ablation.warm is not None:
        found.append(("warm start", list(_find_problems(ablation.warm, trains=False))))
    problems = group_problems(found, [name for name, _ in found])
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{ablation.file}: {count}", *(f"  {text}" for text in problems)]), problems)


def _find_problems(config: RunConfig, *, trains: bool = True) -> Iterator[str]:
    try:
        check_files(config, find_train_problems(config) if trains else ())
    except ConfigError as error:
        yield from error.problems
