"""What a person sees while a run runs.

On a terminal: a table with one line per step, and below it progress bars of what is going on now. Elsewhere (CI, a
Slurm log): the same lines, free of control characters, and a note where a phase is long. The header is repeated every
20 lines.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from megarl.telemetry.columns import RL_COLUMNS, Column, StepTable

HEADER_EVERY = 20
"""Lines between two headers."""
HEARTBEAT_S = 60.0
"""Off the terminal a phase that lasts longer than this says how far it is, this often."""


class Phase:
    """Handle of a running phase."""

    def __init__(self, console: "Console", name: str, total: int | None) -> None:
        self._console, self.name, self.total = console, name, total
        self.done = 0
        self.started_s = self.spoke_s = time.monotonic()
        self.task: TaskID | None = None

    def advance(self, n: int = 1) -> None:
        """`n` more of `total` are done."""
        self.done += n
        self._console._show_advance(self)


class Console:
    """The display of one run. Methods may be called from one thread or event loop; phases may overlap."""

    def __init__(
        self,
        *,
        steps: int,
        columns: Sequence[Column] = RL_COLUMNS,
        file: TextIO | None = None,
        width: int | None = None,
    ) -> None:
        """steps: of the whole run. file: default stdout. width: default the terminal's; off a terminal no limit."""
        self._file = file if file is not None else sys.stdout
        self._steps, self._columns, self._width = steps, columns, width
        self._lines = 0
        self._table = StepTable(columns, steps=steps, width=width)
        self._live: Progress | None = None
        # Decided by the stream alone: FORCE_COLOR and the like must not put control characters into a log.
        screen = rich.console.Console(file=self._file, width=width, force_terminal=self._file.isatty(), highlight=False)
        if screen.is_terminal and not screen.is_dumb_terminal:
            self._live = _build_live(screen)
            self._run_task = self._live.add_task("run", total=steps)
            self._live.start()

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, announce: bool = False) -> Iterator[Phase]:
        """Show that `name` is going on while the block runs; `total`: what `advance` counts up to, None: unknown.

        `announce` prints a line with its seconds when it ends (start-up). Off the terminal other phases speak only
        when they last longer than a minute.
        """
        phase = Phase(self, name, total)
        if self._live is not None:
            phase.task = self._live.add_task(name, total=total)
        try:
            yield phase
            if announce:
                self.note(f"{name:<14} {time.monotonic() - phase.started_s:6.1f} s")
        finally:
            if self._live is not None and phase.task is not None:
                self._live.remove_task(phase.task)

    def step_line(self, values: Mapping[str, float]) -> None:
        """Add the line of a finished step; `values` are its metrics and "step"."""
        if self._lines % HEADER_EVERY == 0:
            self._print_header()
        self._lines += 1
        self._print(self._table.line(values))
        if self._live is not None:
            self._live.update(self._run_task, completed=int(values["step"]))

    def note(self, text: str) -> None:
        """Print `text` as it is, above the progress bars."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Print `text` so that nobody misses it: each line marked, blank lines around."""
        for line in ("", *(f"!!! {line}" for line in text.splitlines()), ""):
            self._print(line, style="bold red")

    def close(self) -> None:
        """Take the progress bars away; the table stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _print_header(self) -> None:
        if self._live is not None:
            # A terminal may have been resized since the last header.
            self._table = StepTable(self._columns, steps=self._steps, width=self._width or self._live.console.width)
        for line in self._table.header():
            self._print(line, style="bold cyan")

    def _print(self, text: str, style: str = "") -> None:
        if self._live is not None:
            self._live.console.print(Text(text, style=style), soft_wrap=True)
        else:
            self._file.write(text + "\n")
            self._file.flush()

    def _show_advance(self, phase: Phase) -> None:
        if self._live is not None and phase.task is not None:
            self._live.update(phase.task, completed=phase.done)
            return
        now_s = time.monotonic()
        if self._live is None and now_s - phase.spoke_s >= HEARTBEAT_S:
            phase.spoke_s = now_s
            of_total = f"/{phase.total}" if phase.total is not None else ""
            self.note(f"{phase.name}: {phase.done}{of_total} after {now_s - phase.started_s:.0f} s")


def _build_live(screen: rich.console.Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        expand=True,
        # Steps can take many minutes; rich's default forgets the speed after 30 s.
        speed_estimate_period=86400,
    )
