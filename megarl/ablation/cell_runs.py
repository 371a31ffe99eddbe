"""What the cells of an ablation have made so far, and which of it is compared.

Reading is safe while runs go on: a row of metrics.jsonl is there whole or not at all, and a cell that has not begun,
was cut short or cannot be read is left out with a reason, never silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, Cell, CellFacts
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import TORN, read_readable_metrics

Row = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRun:
    """A cell with the rows of its metrics.jsonl."""

    cell: Cell
    facts: CellFacts
    run: Path | None = None
    rows: tuple[Row, ...] = ()
    """By step; step 0 has what was measured before the first."""
    problems: tuple[str, ...] = ()
    """What could not be read."""

    @property
    def last_step(self) -> int:
        return int(self.rows[-1]["step"] or 0) if self.rows else 0

    @property
    def is_finished(self) -> bool:
        """Whether the run ended as it should, with something to read."""
        return self.facts.status == "finished" and self.last_step > 0

    def describe(self) -> str:
        """How it stands, in a few words: "failed after step 7: engine 0 died"."""
        status = {"waiting": "not begun"}.get(self.facts.status, self.facts.status)
        where = f" after step {self.last_step}" if self.run is not None else ""
        why = "; ".join(text for text in (self.facts.message, *self.problems) if text)
        return f"{status}{where}" + (f": {why}" if why else "")


def read_cells(directory: AblationDirectory) -> list[CellRun]:
    """Every cell, in the order of the plan."""
    return [_read_cell(directory, cell) for cell in directory.plan().cells]


def _read_cell(directory: AblationDirectory, cell: Cell) -> CellRun:
    problems: list[str] = []
    try:
        facts = directory.standing_of(cell)
    except (OSError, ValueError) as error:  # its state.json, or cells.json
        facts = CellFacts(status="failed")
        problems.append(str(error))
    run = directory.run_of(cell)
    if run is None:
        return CellRun(cell=cell, facts=facts, problems=tuple(problems))
    rows: list[dict[str, float | None]] = []
    try:
        rows, damaged = read_readable_metrics(RunDirectory(run).metrics_path)
    except FileNotFoundError:  # its first step is not over
        damaged = {}
    problems += [f"metrics.jsonl, line {line}: {text}" for line, text in damaged.items() if text != TORN]
    return CellRun(cell=cell, facts=facts, run=run, rows=tuple(rows), problems=tuple(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Which cells are compared, and up to which step of each."""

    is_final: bool
    """Whether those are finished runs; else how far all that have begun are."""
    upto: Mapping[str, int]
    """Cell's name -> step."""
    left_out: Mapping[str, str]
    """Cell's name -> why."""


def choose_compared(cells: Sequence[CellRun]) -> Compared:
    """Of finished runs all steps. As long as there is none: of those that go on or may, the steps that all have made.

    A run that was cut short is left out: its last step is an earlier point of training than that of the others.
    """
    upto = {one.cell.name: one.last_step for one in cells if one.is_finished}
    is_final = bool(upto)
    if not is_final:
        begun = [one for one in cells if one.last_step and one.facts.status in ("running", "stopped")]
        upto = {one.cell.name: min(other.last_step for other in begun) for one in begun}
    left_out = {one.cell.name: one.describe() for one in cells if one.cell.name not in upto}
    return Compared(is_final=is_final, upto=upto, left_out=left_out)
