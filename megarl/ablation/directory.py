"""The directory of an ablation: which runs it is made of, where each lies, and how it stands.

    ablation.source    the file as the user wrote it
    ablation.json      the plan, written once before the first cell; never changed
    driver.lock        locked by the process that runs the cells, as long as that lives (telemetry.run_lock)
    cells/NAME         a link to the cell's run directory, from the moment it has one
    cells/runs/        the run directories, made by `megarl train` as any other
    cells/NAME.log     what the cell's process has printed
    warm, warm.log     likewise of the shared warm start, where there is one
    launch.json        how each run is started (ablation.launch)
    sources/           the base and every fragment, as they were when the ablation was made
    keepers/           what keeps Ray and engines between runs (ablation.keepers), a directory each, with its logs
    cells.json         attempts, status and message of every cell; replaced whole
    table.parquet, summary.json, report.html

A cell is one run: one setting with one seed. The run directory is the truth about a run; cells.json adds what it cannot
say: that its process ended before it had one, how often it was tried, and that it is not tried any more.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory

VERSION = 1
PLAN_FILE, CELLS_FILE, SOURCE_FILE = "ablation.json", "cells.json", "ablation.source"

CellStatus = Literal["waiting", "running", "stopped", "finished", "failed", "skipped"]
"""waiting: not begun. stopped: begun, and ended by a signal or killed; it can go on. failed: it ended by an error.
skipped: not tried any more, since what it needs (the warm start) has failed."""
_BY_RUN: dict[str, CellStatus] = {
    "running": "running",
    "finished": "finished",
    "failed": "failed",
    "interrupted": "stopped",
    "killed": "stopped",
}
"""A run's standing -> its cell's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is compared: one point of the grid, or one entry of the list."""

    name: str
    about: str = ""
    """One line; may be empty."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path of the configuration -> the value that sets this setting apart; floats may be inf."""
    fragments: tuple[str, ...] = ()
    """Files laid over the base, as they were named."""
    control: str | None = None
    """The setting that this one is compared with; None: the plan's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run: a setting with a seed."""

    index: int
    name: str
    setting: str
    seed: int
    run: str
    """Relative to the ablation's directory: a link to the run directory, absent until the cell began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationPlan:
    """What is run; cells in the order in which they begin."""

    name: str
    settings: tuple[Setting, ...]
    cells: tuple[Cell, ...]
    control: str | None = None
    """The setting that the others are compared with, unless they have one of their own."""

    def setting(self, name: str) -> Setting:
        """KeyError where there is none of this name."""
        return {setting.name: setting for setting in self.settings}[name]

    def control_of(self, name: str) -> str | None:
        """The setting that the one of this name is compared with; None for the control itself, or without one."""
        control = self.setting(name).control or self.control
        return None if control == name else control

    def cells_of(self, setting: str) -> tuple[Cell, ...]:
        """In the order of the plan: one for each seed."""
        return tuple(cell for cell in self.cells if cell.setting == setting)

    def as_json(self) -> dict[str, Any]:
        """As ablation.json has it. JSON has no infinity, so an infinite value is the text "inf" or "-inf"."""
        settings = [
            asdict(one) | {"values": {key: encode_infinities(value) for key, value in one.values.items()}}
            for one in self.settings
        ]
        cells = [asdict(cell) for cell in self.cells]
        return {"version": VERSION, "name": self.name, "control": self.control, "settings": settings, "cells": cells}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The reverse. ValueError where it is none, or of another version of megarl."""
        if facts.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION} of an ablation's plan, found {facts.get('version')!r}")
        try:
            settings = [_setting_from_json(one) for one in facts["settings"]]
            cells = [Cell(**one) for one in facts["cells"]]
            return cls(name=facts["name"], control=facts["control"], settings=tuple(settings), cells=tuple(cells))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected an ablation's plan; {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFacts:
    """What cells.json has of one cell."""

    status: CellStatus = "waiting"
    attempts: int = 0
    """Processes that were started for it."""
    message: str | None = None
    """Why it failed, stopped or is skipped."""


@dataclass(frozen=True, slots=True)
class AblationDirectory:
    """Paths and files of an ablation. `create` writes the plan into a new directory, `open` finds one that exists."""

    path: Path

    @classmethod
    def create(cls, path: Path, plan: AblationPlan, *, source: str) -> Self:
        """Into `path`, an empty directory of this ablation alone. source: the text of the user's file."""
        made = cls(path)
        made.runs.mkdir(parents=True)
        write_text_atomically(path / SOURCE_FILE, source)
        write_text_atomically(made.plan_path, json.dumps(plan.as_json(), indent=2, allow_nan=False) + "\n")
        return made

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """FileNotFoundError where `path` is none."""
        found = cls(Path(path).expanduser().resolve())
        if not found.plan_path.is_file():
            raise FileNotFoundError(
                f"{path} is no ablation's directory: it has no {PLAN_FILE}; expected one that `megarl ablate` made"
            )
        return found

    @property
    def plan_path(self) -> Path:
        return self.path / PLAN_FILE

    @property
    def cells_path(self) -> Path:
        return self.path / CELLS_FILE

    @property
    def source_path(self) -> Path:
        return self.path / SOURCE_FILE

    @property
    def runs(self) -> Path:
        """Where the run directories are made."""
        return self.path / "cells" / "runs"

    @property
    def warm(self) -> Path:
        """A link to the shared warm start's run directory, from the moment it has one."""
        return self.path / "warm"

    @property
    def sources(self) -> Path:
        return self.path / "sources"

    @property
    def keepers(self) -> Path:
        """Of the processes that keep engines between runs, a directory each: what they say of themselves, and logs."""
        return self.path / "keepers"

    @property
    def launch_path(self) -> Path:
        return self.path / "launch.json"

    @property
    def table_path(self) -> Path:
        return self.path / "table.parquet"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def link_of(self, cell: Cell) -> Path:
        """Of the cell's run, whether it is there or not."""
        return self.path / cell.run

    def log_of(self, cell: Cell) -> Path:
        """What its processes have printed, one after the other."""
        return self.path / f"{cell.run}.log"

    def plan(self) -> AblationPlan:
        """ValueError, naming the file, where it is damaged."""
        facts = _read_object(self.plan_path)
        try:
            return AblationPlan.from_json(facts)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{self.plan_path} is damaged: {error}") from error

    def run_of(self, cell: Cell) -> Path | None:
        """The cell's run directory; None until it began."""
        found = self.link_of(cell).resolve()
        return found if (found / "state.json").is_file() else None

    def standing_of(self, cell: Cell) -> CellFacts:
        """How the cell stands now, by its run where there is one: a driver that was killed could not write so."""
        facts, driver = self.read_cells()
        return self._standing(facts.get(cell.name, CellFacts()), driver, self.run_of(cell))

    def standings(self) -> dict[str, CellFacts]:
        """Of every cell by its name, in the order of the plan."""
        facts, driver = self.read_cells()
        return {
            cell.name: self._standing(facts.get(cell.name, CellFacts()), driver, self.run_of(cell))
            for cell in self.plan().cells
        }

    def read_cells(self) -> tuple[dict[str, CellFacts], ProcessMark | None]:
        """(what cells.json has by the cell's name, the process that wrote it); empty before the first cell."""
        if not self.cells_path.is_file():
            return {}, None
        found = _read_object(self.cells_path)
        try:
            facts = {name: CellFacts(**one) for name, one in found["cells"].items()}
            driver = ProcessMark.from_json(found["driver"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.cells_path} is damaged: {type(error).__name__}: {error}") from error
        if wrong := [one.status for one in facts.values() if one.status not in get_args(CellStatus)]:
            raise ValueError(f"{self.cells_path} is damaged: {wrong[0]!r} is no status of a cell")
        return facts, driver

    def write_cells(self, facts: Mapping[str, CellFacts], driver: ProcessMark) -> None:
        """Replace cells.json, whole. driver: the process that runs the cells."""
        found = {"driver": driver.as_json(), "cells": {name: asdict(one) for name, one in facts.items()}}
        write_text_atomically(self.cells_path, json.dumps(found, indent=2, allow_nan=False) + "\n")

    @staticmethod
    def _standing(facts: CellFacts, driver: ProcessMark | None, run: Path | None) -> CellFacts:
        if run is None:
            # Its driver was killed while the cell's process began.
            lost = facts.status == "running" and (driver is None or driver.standing() == "dead")
            if facts.status in ("stopped", "finished"):  # which it can only be with a run
                return CellFacts(attempts=facts.attempts, message="the link to its run is gone")
            return CellFacts(attempts=facts.attempts, message=facts.message) if lost else facts
        standing, message = RunDirectory(run).standing()
        return CellFacts(status=_BY_RUN[standing], attempts=facts.attempts, message=message)


def is_ablation(path: Path) -> bool:
    """Whether this is the directory of an ablation, or a link to one."""
    return (path.expanduser() / PLAN_FILE).is_file()


def encode_infinities(value: Any) -> Any:
    """A value as JSON can have it: infinities as the texts "inf" and "-inf", tuples as lists."""
    match value:
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case Mapping():
            return {key: encode_infinities(item) for key, item in value.items()}
        case list() | tuple():
            return [encode_infinities(item) for item in value]
    return value


def decode_infinities(value: Any) -> Any:
    """The reverse."""
    match value:
        case "inf" | "-inf":
            return math.inf if value == "inf" else -math.inf
        case dict():
            return {key: decode_infinities(item) for key, item in value.items()}
        case list():
            return [decode_infinities(item) for item in value]
    return value


def _setting_from_json(facts: Mapping[str, Any]) -> Setting:
    values = {key: decode_infinities(value) for key, value in facts["values"].items()}
    return Setting(
        name=facts["name"],
        about=facts["about"],
        values=values,
        fragments=tuple(facts["fragments"]),
        control=facts.get("control"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {text[:80]!r}")
    return facts
