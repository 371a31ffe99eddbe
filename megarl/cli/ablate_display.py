"""What a person sees while the runs of an ablation run: one line for each.

On a terminal a table that is drawn anew in place. Elsewhere a line when a run begins or ends, and once a minute one for
each that is under way.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from megarl.ablation.directory import CellFacts
from megarl.ablation.driver import Task
from megarl.ablation.progress import Progress, ProgressReader
from megarl.slurm.times import format_seconds
from megarl.telemetry.columns import format_number

SPEAK_EVERY_S = 60.0
_DRAW_EVERY_S = 1.0
_FRAME_LINES = 5
"""Of a table, beside those of the runs."""
_STYLES = {"finished": "green", "failed": "red", "running": "cyan", "stopped": "yellow", "skipped": "red"}


class AblationDisplay:
    """Shows the runs of a driver; used as a context manager around it."""

    def __init__(self, console: Console, tasks: Sequence[Task], *, at_once: int) -> None:
        """at_once: how many run at a time."""
        self._console, self._at_once = console, at_once
        self._tasks = {task.name: task for task in tasks}
        self._reader = ProgressReader()
        self._begun_s: dict[str, float] = {}
        self._drawn_s = 0.0
        self._spoke_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.__exit__(kind, error, trace)

    def began(self, task: Task, facts: CellFacts) -> None:
        self._begun_s[task.name] = time.monotonic()
        if self._live is None:
            again = "" if facts.attempts == 1 else f" (attempt {facts.attempts}{self._from_step(task)})"
            self._say(f"{task.name}: begins{again}")

    def ended(self, task: Task, facts: CellFacts) -> None:
        took = time.monotonic() - self._begun_s.get(task.name, time.monotonic())
        progress = self._progress(task)
        told = f": {facts.message}" if facts.message else ""
        what = "failed, and is tried again" if facts.status == "waiting" and facts.message else facts.status
        if self._live is None or facts.status != "finished":
            self._say(f"{task.name}: {what} after step {progress.step} of {task.steps}, {format_seconds(took)}{told}")

    def stopping(self, signal_name: str, running: Sequence[str]) -> None:
        what = f"; waiting for {', '.join(running)} to stop" if running else ""
        self._say(f"{signal_name}: nothing more is started{what}")

    def look(self, facts: Mapping[str, CellFacts]) -> None:
        now = time.monotonic()
        if self._live is not None and now - self._drawn_s >= _DRAW_EVERY_S:
            self._drawn_s = now
            self._draw(self._live, facts)
        elif self._live is None and now - self._spoke_s >= SPEAK_EVERY_S:
            self._spoke_s = now
            for name, of_run in facts.items():
                if of_run.status == "running":
                    self._say(f"{name}: {' '.join(self._cells(self._tasks[name])).strip()}")
            self._say(self._summary(facts))

    def finish(self, facts: Mapping[str, CellFacts]) -> None:
        """Draw how it ended."""
        if self._live is not None:
            self._draw(self._live, facts)
        else:
            self._say(self._summary(facts))

    def _draw(self, live: Live, facts: Mapping[str, CellFacts]) -> None:
        with suppress(OSError):  # of a terminal that was closed: the runs go on, or stop in order
            live.update(self._table(facts), refresh=True)

    def _say(self, text: str) -> None:
        with suppress(OSError):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _from_step(self, task: Task) -> str:
        step = self._progress(task).step
        return f", it had reached step {step}" if step else ""

    def _progress(self, task: Task) -> Progress:
        return self._reader.read(task.link / "metrics.jsonl", steps=task.steps)

    def _cells(self, task: Task) -> tuple[str, str, str, str]:
        progress = self._progress(task)
        left = progress.seconds_left
        return (
            f"step {progress.step}/{task.steps}",
            f"reward {format_number(progress.reward, width=6, decimals=3)}",
            f"entropy {format_number(progress.entropy, width=6, decimals=3)}",
            "" if left is None else f"{format_seconds(left)} left",
        )

    def _table(self, facts: Mapping[str, CellFacts]) -> Table:
        table = Table(box=None, pad_edge=False, caption=self._summary(facts), caption_justify="left")
        for header in ("run", "status", "step", "reward", "entropy", "left"):
            table.add_column(header, justify="left" if header in ("run", "status") else "right", no_wrap=True)
        for name in self._shown(facts):
            of_run, task = facts[name], self._tasks[name]
            began = of_run.status != "waiting" or of_run.attempts
            progress = self._progress(task) if began else Progress(steps=task.steps)
            left = progress.seconds_left if of_run.status == "running" else None
            tried = f" ({of_run.attempts})" if of_run.attempts > 1 else ""
            table.add_row(
                Text(name),
                Text(f"{of_run.status}{tried}", style=_STYLES.get(of_run.status, "dim")),
                f"{progress.step}/{task.steps}",
                format_number(progress.reward, width=7, decimals=3),
                format_number(progress.entropy, width=7, decimals=3),
                "" if left is None else format_seconds(left),
            )
        return table

    def _shown(self, facts: Mapping[str, CellFacts]) -> list[str]:
        """All where the terminal is high enough, else those of which there is something to see."""
        room = self._console.height - _FRAME_LINES
        if len(facts) <= room:
            return list(facts)
        order = {"running": 0, "failed": 1, "stopped": 2, "finished": 3}
        ranked = sorted(facts, key=lambda name: order.get(facts[name].status, 4))[: max(room, 1)]
        return [name for name in facts if name in set(ranked)]

    def _summary(self, facts: Mapping[str, CellFacts]) -> str:
        counts = Counter(of_run.status for of_run in facts.values())
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        left = self._seconds_left(facts)
        return f"{len(facts)} runs: {text}" + ("" if left is None else f"; about {format_seconds(left)} left")

    def _seconds_left(self, facts: Mapping[str, CellFacts]) -> float | None:
        """At the mean pace of the runs that have one, without what a start takes; None before there is any."""
        progress = {name: self._progress(self._tasks[name]) for name in facts if facts[name].status != "waiting"}
        paces = [one.seconds_per_step for one in progress.values() if one.seconds_per_step is not None]
        open_ = [name for name, of_run in facts.items() if of_run.status in ("waiting", "running")]
        if not paces or not open_:
            return None
        mean = sum(paces) / len(paces)
        steps = {name: self._tasks[name].steps - (progress[name].step if name in progress else 0) for name in open_}
        return mean * sum(steps.values()) / min(self._at_once, len(open_))
