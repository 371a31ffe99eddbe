"""`megarl theory RUN|ABLATION...`: the theorems and the first-order prediction against what runs did."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from megarl.ablation.directory import AblationDirectory, is_ablation
from megarl.ablation.stored import SUFFIX, UPDATES_SUFFIX, is_stored
from megarl.cli.report import choose_runs
from megarl.cli.theory import (
    check_theory_directory,
    make_theory_directory,
    print_bullets,
    print_files,
    print_tables,
    theory_progress,
)
from megarl.config.base import ConfigError
from megarl.report.many import Chosen, read_comparison
from megarl.telemetry.versions import collect_versions
from megarl.theory.practice.collect import OnRun, collect_practice, practice_of_ablation
from megarl.theory.practice.files import DOES_NOT_SAY, write_practice_files
from megarl.theory.practice.numbers import ENDING, Practice, read_practice
from megarl.theory.practice.tables import build_practice_tables

_MOST_NOTES = 12


def names_runs(path: Path | None) -> bool:
    """Whether the first argument of `megarl theory` is of runs, not the TOML file of a study."""
    return path is not None and (path.expanduser().is_dir() or is_stored(path))


def run_practice(console: Console, paths: Sequence[Path], output: Path | None) -> int:
    """Read, print and write everything; returns the exit code.

    paths: runs, ablations, or one table that this has written. output: an empty directory or one to be made, else
        ConfigError; None: runs/theory-<time>.
    """
    _check(paths)
    if output is not None:  # before the runs are read, which takes minutes
        check_theory_directory(output)
    practice = _read(console, paths)
    tables = build_practice_tables(practice)
    directory = make_theory_directory(output)
    files = write_practice_files(directory, practice, tables, collect_versions())
    print_tables(console, tables)
    console.print(Text("\nWhat it does not say", style="bold cyan"))
    print_bullets(console, DOES_NOT_SAY)
    if practice.notes:
        console.print(Text("\nWhat was read", style="bold cyan"))
        more = [f"and {len(practice.notes) - _MOST_NOTES} more, in practice.json"]
        print_bullets(console, [*practice.notes[:_MOST_NOTES], *(more if len(practice.notes) > _MOST_NOTES else [])])
    print_files(console, directory, files, numbers=files[0])
    return 0


def _check(paths: Sequence[Path]) -> None:
    tables = [path for path in paths if is_stored(path)]
    if tables and len(paths) > 1:
        raise ConfigError(
            f"megarl theory: {tables[0]} is a table of its own; expected it alone, or runs and ablations without it"
        )
    for path in paths:
        if "=" in path.name and not path.exists():
            raise ConfigError(
                f"megarl theory: {path} looks like a change of a configuration; expected none with runs, or a TOML "
                "file in the place of the runs"
            )


def _read(console: Console, paths: Sequence[Path]) -> Practice:
    if is_stored(paths[0]):
        return read_practice(_stored(paths[0].expanduser()))
    with theory_progress(console) as stage:
        if len(paths) == 1 and is_ablation(paths[0]):
            try:
                ablation = AblationDirectory.open(paths[0])
                with stage("runs", len(ablation.plan().cells)) as advance:
                    return practice_of_ablation(ablation, advance)
            except ValueError as error:
                raise error if isinstance(error, ConfigError) else ConfigError(f"megarl theory: {error}") from error
        with stage("runs", 0) as advance:
            return _read_runs(paths, advance)


def _stored(path: Path) -> Path:
    """NAME.practice.parquet, also of NAME.parquet beside it. ConfigError where there is none."""
    if not path.is_file():
        raise ConfigError(
            f"megarl theory: {path} does not exist; expected a table that `megarl theory RUN|ABLATION` or "
            "tools/store_results.py wrote"
        )
    if path.name.endswith(ENDING):
        return path
    name = path.name.removesuffix(UPDATES_SUFFIX).removesuffix(SUFFIX)
    beside = path.with_name(name + ENDING)
    if not beside.is_file():
        raise ConfigError(
            f"megarl theory: {path} does not say what is asked; expected {beside.name} beside it, which "
            "tools/store_results.py writes, or the directory of the ablation"
        )
    return beside


def _read_runs(paths: Sequence[Path], advance: OnRun) -> Practice:
    chosen = choose_runs(paths, verb="theory")
    if not isinstance(chosen, Chosen):
        chosen = Chosen(title=chosen.path.name, runs=(chosen,))
    try:
        comparison = read_comparison(chosen)
    except ValueError as error:
        raise ConfigError(f"megarl theory: {error}") from error
    name = paths[0].expanduser().resolve().name if len(paths) == 1 else "runs"
    return collect_practice(comparison, name=name, on_run=advance)
