"""What the arguments of `megarl top` mean: runs, jobs with their sweeps, ablations with their cells."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, Cell, CellFacts, CellStatus, is_ablation
from megarl.cli.paths import shown_path
from megarl.cli.top_frame import RunFrame, Shown
from megarl.cli.top_watch import Changed, RunWatch
from megarl.config.base import ConfigError
from megarl.slurm.job_directory import find_job
from megarl.telemetry.run_directory import RunDirectory

_MADE = re.compile(r"-(train|sft|eval)-\d{8}T\d{6}Z(-\d+)?$")
"""What `RunDirectory.create` puts after the run's own name."""

_WITHOUT_RUN: dict[CellStatus, Shown] = {
    "waiting": "waiting",
    "running": "running",
    "stopped": "interrupted",
    "finished": "finished",
    "failed": "failed",
    "skipped": "skipped",
}
"""How a cell stands that has no run directory yet."""


def _not_begun() -> tuple[Shown, str]:
    return "waiting", ""


@dataclass(kw_only=True)
class Place:
    """Where a run is, or will be."""

    label: str
    find: Callable[[], RunDirectory | None]
    """None: it has not begun."""
    before: Callable[[], tuple[Shown, str]] = _not_begun
    """How it stands while it has not, and why."""
    alone: bool = False
    may_not_be: bool = False
    """Nobody knows whether there will be a run: until there is one it is not shown."""
    _watch: RunWatch | None = field(default=None, init=False)
    _path: Path | None = field(default=None, init=False)

    def look(self) -> RunFrame | None:
        """How it stands now; another run that has taken its place is looked at from then on. None: it is not shown."""
        run = self.find()
        if run is None and self.may_not_be:
            return None
        if run is None:
            standing, message = self.before()
            return RunFrame(label=self.label, standing=standing, message=message)
        if self._watch is None or run.path != self._path:
            self._watch, self._path = RunWatch(run, self.label, alone=self.alone), run.path
        return self._watch.look()


def find_places(paths: Sequence[Path]) -> tuple[list[Place], str]:
    """(the runs in their order, what they are together). ConfigError where a path is none of what has runs."""
    places = [place for path in paths for place in _places_of(path)]
    if len(places) == 1:
        places[0].alone = True
    else:
        _shorten(places)
    return places, shown_path(paths[0].expanduser().absolute()) if len(paths) == 1 else "megarl top"


def _places_of(path: Path) -> list[Place]:
    if is_ablation(path):
        return _cells_of(AblationDirectory.open(path))
    job = find_job(path)
    if job is not None and not (path.expanduser() / "state.json").is_file():
        return [Place(label=_job_label(one.path, job[0].path), find=one.run) for one in job[1]]
    try:
        run = RunDirectory.open(path)
    except FileNotFoundError:
        raise ConfigError(
            f"megarl top: {path} is neither a run, a job nor an ablation; expected a directory that `megarl train`, "
            "`megarl submit` or `megarl ablate` made, such as runs/latest"
        ) from None
    return [Place(label=run.path.name, find=lambda: run)]


def _cells_of(ablation: AblationDirectory) -> list[Place]:
    """The shared warm start, where there is one, then the cells in the order in which they begin."""
    try:
        plan = ablation.plan()
    except ValueError as error:
        raise ConfigError(f"megarl top: {error}") from error
    facts = Changed(ablation.cells_path, lambda: ablation.read_cells()[0])

    def place(cell: Cell) -> Place:
        def find() -> RunDirectory | None:
            found = ablation.run_of(cell)
            return None if found is None else RunDirectory(found)

        def before() -> tuple[Shown, str]:
            try:
                told = (facts.look() or {}).get(cell.name, CellFacts())
            except (OSError, ValueError) as error:
                return "unknown", str(error)
            return _WITHOUT_RUN[told.status], told.message or ""

        return Place(label=cell.name, find=find, before=before)

    def find_warm() -> RunDirectory | None:
        found = ablation.warm.resolve()
        return RunDirectory(found) if (found / "state.json").is_file() else None

    return [Place(label="warm start", find=find_warm, may_not_be=True), *map(place, plan.cells)]


def _shorten(places: Sequence[Place]) -> None:
    """Runs without verb and time at the end of their names, where they are still told apart."""
    short = [_MADE.sub("", place.label) for place in places]
    for place, label in zip(places, short, strict=True):
        if short.count(label) == 1:
            place.label = label


def _job_label(path: Path, job: Path) -> str:
    return job.name if path == job else f"{job.name}/{path.name}"
