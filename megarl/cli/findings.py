"""What `megarl doctor` found: one row each, and the programs it asks in processes of their own."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megarl.config.base import ConfigError

Level = Literal["ok", "info", "warning", "failure"]

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "info": ("·", "dim"),
    "warning": ("!", "yellow"),
    "failure": ("✗", "bold red"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's result."""

    name: str
    level: Level
    found: str
    action: str = ""
    """What to do; every failure has one."""

    def __post_init__(self) -> None:
        if self.level == "failure" and not self.action:
            raise ValueError(f"the failure {self.name!r} ({self.found}) does not say what to do")


def findings_of(error: ConfigError, name: str) -> Iterator[Finding]:
    """One failure per problem; what a problem's text says after its last semicolon is what to do."""
    for problem in error.problems:
        found, semicolon, action = problem.rpartition("; ")
        default = "correct the file; `megarl show --fields` explains every field"
        yield Finding(
            name=name, level="failure", found=found if semicolon else problem, action=action if semicolon else default
        )


def render_findings(findings: Iterable[Finding]) -> Table:
    """A table: mark, name, what was found and, below it, what to do."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        found = Text(finding.found)
        if finding.action:
            found.append(f"\n→ {finding.action}", style=style)
        table.add_row(Text(mark, style=style), Text(finding.name), found)
    return table


def print_summary(console: Console, findings: Iterable[Finding]) -> int:
    """Print the counts; returns the exit code, 1 when anything failed."""
    levels = [finding.level for finding in findings]
    failures, warnings = levels.count("failure"), levels.count("warning")
    text = f"{levels.count('ok')} checks passed, {warnings} warnings, {failures} failures"
    console.print(text, style="bold red" if failures else "bold green", highlight=False)
    return 1 if failures else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program in its own process printed."""

    succeeded: bool
    text: str
    """Last line of its output when it succeeded, else the last line of its error output."""


def ask_process(command: list[str], *, timeout_s: float) -> Answer:
    """Run a command; a crash, a signal, an absent program and a time-out are answers too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Answer(succeeded=False, text=f"no answer after {timeout_s:g} s")
    except OSError as error:
        return Answer(succeeded=False, text=str(error))
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    if done.returncode < 0:
        return Answer(succeeded=False, text=f"killed by signal {-done.returncode}")
    return Answer(succeeded=done.returncode == 0, text=lines[-1].strip() if lines else f"exit code {done.returncode}")


def ask_python(code: str, *, timeout_s: float) -> Answer:
    """Run Python code in this environment's interpreter: heavy packages stay out of this process."""
    return ask_process([sys.executable, "-c", code], timeout_s=timeout_s)
