"""`megarl report`: the page of a run, or of many compared, and single figures for a paper, made from their files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from megarl.ablation.directory import AblationDirectory, is_ablation
from megarl.ablation.stored import is_stored
from megarl.cli.paths import shown_path
from megarl.cli.report_memory import memory_planner
from megarl.config.base import ConfigError
from megarl.report.exports import FileFormat, Width, write_figure
from megarl.report.figure import AnyFigure
from megarl.report.figure_sets import FigureSection, run_sections
from megarl.report.figures import RunFigures, write_run_figures
from megarl.report.many import Chosen, Comparison, choose_cells, choose_stored, read_comparison, write_comparison
from megarl.report.problems import Problems
from megarl.report.run_data import read_run
from megarl.telemetry.run_directory import RunDirectory


def run_report(paths: Sequence[Path], *, output: Path | None = None) -> int:
    """Draw one run, or compare several, and say how it stands; returns the exit code: 1 when something could not be
    drawn or read."""
    if output is not None and not output.is_dir() and output.suffix not in (".html", ".htm"):
        raise ConfigError(
            f"megarl report: a page goes to a file that ends in .html, found -o {output}; --figure NAME writes others"
        )
    chosen = choose_runs(paths)
    if isinstance(chosen, RunDirectory):
        _print_standing(chosen)
        return 0 if draw_figures(chosen, page=output) else 1
    target = output or _default_page(paths)
    if target is None:
        raise ConfigError(
            f"megarl report: {len(chosen.runs)} runs are compared on one page; expected where it goes, e.g. "
            "-o comparison.html"
        )
    _check_target(target)
    comparison = _read(chosen)
    problems = write_comparison(comparison, target)
    print(f"runs     {len(comparison.runs)}, settings {len(comparison.groups)}")
    print(f"report   {shown_path(target)} ({target.stat().st_size / 1e6:.1f} MB)")
    for problem in problems:
        print(f"missing  {problem}")
    return 1 if comparison.problem_lines() else 0


def print_figure_names(paths: Sequence[Path]) -> None:
    """What `--figure` takes for these runs."""
    for section in _sections(paths):
        print(section.title)
        for figure in section.figures:
            print(f"  {figure.key:28} {figure.title}")


def export_figure(
    paths: Sequence[Path], name: str, *, file_format: FileFormat | None, width: Width, output: Path | None
) -> Path:
    """Write one figure, sized for a paper; returns its path. ConfigError where there is none of that name."""
    suffix = output.suffix.removeprefix(".") if output else ""
    if file_format is None:
        if output is not None and suffix not in get_args(FileFormat):
            raise ConfigError(
                f"megarl report: {output} has no format; expected a name that ends in .png, .svg or .pdf, or --format"
            )
        file_format = suffix if output else "pdf"  # type: ignore[assignment]
    assert file_format is not None
    if suffix in get_args(FileFormat) and suffix != file_format:
        raise ConfigError(
            f"megarl report: {output} ends in .{suffix}, but --format is {file_format}; expected one of both"
        )
    if output is None:
        chosen = choose_runs(paths)
        if isinstance(chosen, RunDirectory):
            folder = chosen.figures
        elif (page := _default_page(paths)) is not None:
            folder = page.parent / "figures"
        else:
            raise ConfigError(f"megarl report: expected where the figure goes, e.g. -o {name}.{file_format}")
        folder.mkdir(exist_ok=True)
        output = folder / f"{name}-{width}.{file_format}"
    _check_target(output)
    figure = _find_figure(_sections(paths), name)
    write_figure(figure, output, file_format=file_format, width=width)
    return output


def choose_runs(paths: Sequence[Path], *, verb: str = "report") -> RunDirectory | Chosen:
    """One run as it is; several, or the cells of ablations, or a stored table's, to be compared. A run that is named
    twice counts once. verb: who asks, for what is said where a path is none of them."""
    if any(is_stored(path) for path in paths):
        return _open_stored(paths)
    if len(paths) == 1 and is_ablation(paths[0]):
        return _open_ablation(paths[0], verb)
    runs: dict[Path, RunDirectory] = {}
    notes: list[str] = []
    for path in paths:
        if is_ablation(path):
            cells = _open_ablation(path, verb)
            found = [run for run in cells.runs if isinstance(run, RunDirectory)]
            notes = [*notes, *cells.notes]
        else:
            found = [open_run(path, verb=verb)]
        runs |= {run.path: run for run in found}
    if len(paths) == 1 or (len(runs) == 1 and not notes):
        return next(iter(runs.values()))
    return Chosen(title=f"{len(runs)} runs", runs=tuple(runs.values()), notes=tuple(notes))


def open_run(path: Path, *, verb: str = "report") -> RunDirectory:
    """ConfigError when `path` is no run directory."""
    run = RunDirectory(path.expanduser().resolve())
    if run.state_path.is_file() or run.metrics_path.is_file():
        return run
    inside = sorted(found.parent for found in run.path.glob("*/state.json")) if run.path.is_dir() else []
    hint = f"; did you mean {shown_path(inside[-1])}?" if inside else "; `ls runs/` lists those of this directory"
    what = "is no run directory: it has neither state.json nor metrics.jsonl" if run.path.exists() else "does not exist"
    raise ConfigError(
        f"megarl {verb}: {path} {what}; expected a directory that `megarl train`, `sft` or `ablate` made{hint}"
    )


def draw_figures(run: RunDirectory, *, page: Path | None = None) -> bool:
    """Draw, and say where the page is and what is missing. Never raises; False when something is missing."""
    again = f"try again: megarl report {shown_path(run.path)}"
    try:
        drawn: RunFigures = write_run_figures(run.path, page=page, planner=memory_planner(run))
    except Exception as error:
        print(f"figures  not drawn: {type(error).__name__}: {error}; {again}")
        return False
    print(f"figures  {shown_path(run.figures)} ({len(drawn.written) - 1} files)")
    print(f"report   {shown_path(drawn.written[-1])}")
    for problem in drawn.problems:
        print(f"missing  {problem}")
    if drawn.problems:
        print(f"         {again}")
    return not drawn.problems


def _open_ablation(path: Path, verb: str) -> Chosen:
    try:
        chosen = choose_cells(AblationDirectory.open(path))
    except ValueError as error:
        raise ConfigError(f"megarl {verb}: {error}") from error
    if not chosen.runs:
        raise ConfigError(f"megarl {verb}: no cell of {path} has begun; expected one at least")
    return chosen


def _open_stored(paths: Sequence[Path]) -> Chosen:
    if len(paths) > 1:
        raise ConfigError(
            f"megarl report: a stored table is drawn by itself, found {len(paths)} paths with one; expected one alone"
        )
    try:
        return choose_stored(paths[0].expanduser())
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"megarl report: {error}") from error


def _read(chosen: Chosen) -> Comparison:
    try:
        return read_comparison(chosen)
    except ValueError as error:
        raise ConfigError(f"megarl report: {error}") from error


def _sections(paths: Sequence[Path]) -> list[FigureSection]:
    """All figures of these runs; what could not be read or drawn is said on stderr."""
    chosen = choose_runs(paths)
    if isinstance(chosen, RunDirectory):
        problems, data = Problems(), read_run(chosen)
        sections = run_sections(data, problems, memory_planner(chosen))
        missing = [*data.problems, *problems.lines()]
    else:
        comparison = _read(chosen)
        sections = comparison.sections()
        missing = comparison.problem_lines()
    for line in missing:
        print(f"missing  {line}", file=sys.stderr)
    return sections


def _find_figure(sections: Sequence[FigureSection], name: str) -> AnyFigure:
    figures = {figure.key: figure for section in sections for figure in section.figures}
    if name not in figures:
        known = ", ".join(figures) or "none, as no step has ended"
        raise ConfigError(f"megarl report: no figure {name!r}; these runs have {known}")
    return figures[name]


def _default_page(paths: Sequence[Path]) -> Path | None:
    """Of one ablation, beside its cells."""
    if len(paths) == 1 and is_ablation(paths[0]):
        return AblationDirectory.open(paths[0]).report_path
    return None


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"megarl report: {target} is a directory; expected the name of a file in it")
    if not target.parent.is_dir():
        raise ConfigError(f"megarl report: {target.parent} does not exist; expected a directory for {target.name}")


def _print_standing(run: RunDirectory) -> None:
    try:
        status, message = run.standing()
        step = run.read_state().step
    except (OSError, ValueError, TypeError) as error:
        print(f"run      {shown_path(run.path)}\nstate    unknown: {error}")
        return
    print(f"run      {shown_path(run.path)}")
    print(f"state    {status} after step {step}" + (f": {message}" if message else ""))
