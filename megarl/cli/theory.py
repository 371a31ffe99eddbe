"""`megarl theory [CONFIG]`: the theorems on clipping and entropy, computed and drawn; needs no model, data or GPU."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from megarl.cli.paths import shown_path
from megarl.cli.whole_tables import print_whole
from megarl.config.base import ConfigError
from megarl.config.dump import dump_config
from megarl.config.theory import TheoryConfig
from megarl.telemetry.run_directory import make_numbered
from megarl.telemetry.versions import collect_versions
from megarl.theory.files import TheoryText, write_theory_files
from megarl.theory.results import Stage, compute_results
from megarl.theory.studies import Advance
from megarl.theory.tables import DOES_NOT_SAY, TheoryTable, build_tables, findings


def run_theory(console: Console, theory: TheoryConfig, output: Path | None) -> int:
    """Compute, print and write everything; returns the exit code.

    output: an empty directory or one to be made, else ConfigError; None: runs/theory-<time>.
    """
    directory = make_theory_directory(output)
    with theory_progress(console) as stage:
        results = compute_results(theory, stage)
    tables = build_tables(results)
    text = TheoryText(
        says=findings(results, seeds=theory.multi_step.seeds),
        does_not_say=DOES_NOT_SAY,
        config_toml=dump_config(theory),
        versions=collect_versions(),
    )
    files = write_theory_files(directory, results.to_plain(), tables, text)
    _print_results(console, tables, text)
    print_files(console, directory, files, numbers=directory / "theory.json")
    return 0


def print_files(console: Console, directory: Path, files: Sequence[Path], *, numbers: Path) -> None:
    """Where figures, numbers and the report lie. files: all that were written."""
    for line in (
        "",
        f"figures  {shown_path(directory / 'figures')} ({sum(file.suffix == '.png' for file in files)} as PNG and SVG)",
        f"numbers  {shown_path(numbers)}",
        f"report   {shown_path(directory / 'report.html')}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def make_theory_directory(output: Path | None) -> Path:
    """A directory that holds nothing yet: a study never replaces the files of another."""
    if output is None:
        parent = Path("runs").resolve()
        parent.mkdir(parents=True, exist_ok=True)
        return make_numbered(parent, f"theory-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    check_theory_directory(output)
    directory = output.expanduser().resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {directory}: cannot be made a directory: {error.strerror}") from error
    return directory


def check_theory_directory(output: Path) -> None:
    """ConfigError where something lies there already. Makes nothing."""
    directory = output.expanduser().resolve()
    if not directory.exists():
        return
    try:
        held = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be made a directory: {error.strerror}") from error
    if held:
        raise ConfigError(
            f"--output {output}: expected an empty or a new directory, found one with {', '.join(held[:5])}"
            f"{', ...' if len(held) > 5 else ''}; name another, or remove it"
        )


@contextmanager
def theory_progress(console: Console) -> Iterator[Stage]:
    """Gives a context manager per stage: a bar on a terminal, and everywhere a line with its seconds when it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=40),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Advance]:
            started_s = time.monotonic()
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)
            progress.remove_task(task)
            console.print(f"{name:<16}{time.monotonic() - started_s:6.1f} s", highlight=False)

        yield stage


def _print_results(console: Console, tables: Sequence[TheoryTable], text: TheoryText) -> None:
    print_tables(console, tables)
    for title, lines in (("What follows", text.says), ("What does not follow", text.does_not_say)):
        console.print(Text(f"\n{title}", style="bold cyan"))
        print_bullets(console, lines)


def print_tables(console: Console, tables: Sequence[TheoryTable]) -> None:
    """Each with its title, caption and notes; nothing is cut off."""
    for table in tables:
        console.print(Text(f"\n{table.title}", style="bold cyan"))
        console.print(Text(table.caption, style="dim"))
        print_whole(console, _render(table))
        if table.notes:
            print_bullets(console, table.notes)


def print_bullets(console: Console, lines: Sequence[str]) -> None:
    """A line each, folded where it is longer than the terminal."""
    bullets = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    bullets.add_column(width=1)
    bullets.add_column(overflow="fold")
    for line in lines:
        bullets.add_row("-", Text(line))
    console.print(bullets)


def _render(table: TheoryTable) -> Table:
    rendered = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in table.columns:
        justify: Literal["left", "right"] = "left" if column.startswith("<") else "right"
        rendered.add_column(column.removeprefix("<"), justify=justify, no_wrap=True)
    for row in table.rows:
        rendered.add_row(*map(Text, row))
    return rendered
