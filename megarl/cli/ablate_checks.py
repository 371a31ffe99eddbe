"""What is refused before the first run of an ablation begins: files, layouts and the machine, of every setting."""

from collections.abc import Callable, Iterator

from megarl.ablation.cells import Ablation, group_problems
from megarl.cli.preflight import check_files
from megarl.cli.train_checks import find_train_problems
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig


def check_ablation(ablation: Ablation, find_problems: Callable[[RunConfig], Iterator[str]] | None = None) -> None:
    """ConfigError with everything that is wrong with the runs, each problem once with the settings that have it.

    find_problems: of one run; default: of one on this machine.
    """
    find = find_problems or find_problems_here
    found = [(run.cell.setting, list(find(run.config))) for run in ablation.first_runs]
    if ablation.warm is not None:
        found.append(("warm start", list(find(ablation.warm))))
    problems = group_problems(found, [name for name, _ in found])
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{ablation.file}: {count}", *(f"  {text}" for text in problems)]), problems)


def find_problems_here(config: RunConfig) -> Iterator[str]:
    """What `megarl train` would refuse before it starts."""
    try:
        check_files(config, find_train_problems(config))
    except ConfigError as error:
        yield from error.problems
