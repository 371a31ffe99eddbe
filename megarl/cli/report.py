"""`megarl report`: the figures and the page of any run, made anew from its files."""

from collections.abc import Sequence
from pathlib import Path

from megarl.cli.paths import shown_path
from megarl.config.base import ConfigError
from megarl.report.figures import RunFigures, write_run_figures
from megarl.telemetry.run_directory import RunDirectory


def run_report(paths: Sequence[Path]) -> int:
    """Draw every run and say how it stands; returns the exit code: 1 when something could not be drawn or read."""
    runs = [open_run(path) for path in paths]
    complete = True
    for number, run in enumerate(runs):
        if number:
            print()
        _print_standing(run)
        complete &= draw_figures(run)
    return 0 if complete else 1


def open_run(path: Path) -> RunDirectory:
    """ConfigError when `path` is no run directory."""
    run = RunDirectory(path.expanduser().resolve())
    if run.state_path.is_file() or run.metrics_path.is_file():
        return run
    inside = sorted(found.parent for found in run.path.glob("*/state.json")) if run.path.is_dir() else []
    hint = f"; did you mean {shown_path(inside[-1])}?" if inside else "; `ls runs/` lists those of this directory"
    what = "is no run directory: it has neither state.json nor metrics.jsonl" if run.path.exists() else "does not exist"
    raise ConfigError(f"megarl report: {path} {what}; expected a directory that `megarl train` or `sft` made{hint}")


def draw_figures(run: RunDirectory) -> bool:
    """Draw, and say where the page is and what is missing. Never raises; False when something is missing."""
    again = f"try again: megarl report {shown_path(run.path)}"
    try:
        drawn: RunFigures = write_run_figures(run.path)
    except Exception as error:
        print(f"figures  not drawn: {type(error).__name__}: {error}; {again}")
        return False
    print(f"figures  {shown_path(run.figures)} ({len(drawn.written) - 1} files)")
    print(f"report   {shown_path(run.report_path)}")
    for problem in drawn.problems:
        print(f"missing  {problem}")
    if drawn.problems:
        print(f"         {again}")
    return not drawn.problems


def _print_standing(run: RunDirectory) -> None:
    try:
        status, message = run.standing()
        step = run.read_state().step
    except (OSError, ValueError, TypeError) as error:
        print(f"run      {shown_path(run.path)}\nstate    unknown: {error}")
        return
    print(f"run      {shown_path(run.path)}")
    print(f"state    {status} after step {step}" + (f": {message}" if message else ""))
