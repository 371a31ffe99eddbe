"""`megarl ablate`: the runs of an ablation, in processes of their own, on this machine."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megarl.ablation.cells import Ablation, load_ablation
from megarl.ablation.directory import AblationDirectory, Cell, CellFacts
from megarl.ablation.driver import Driver, Task
from megarl.ablation.launch import Launch, Start, find_shapes, read_launch, write_launch
from megarl.ablation.processes import RunProcess, Slot, start_process
from megarl.cli.ablate_checks import check_ablation
from megarl.cli.ablate_display import AblationDisplay
from megarl.cli.ablate_keeping import describe_kept, find_keeper_start
from megarl.cli.ablate_room import find_needs, find_slots
from megarl.cli.ablation_costs import check_costs, print_rest
from megarl.cli.ablation_tables import finish_tables
from megarl.cli.paths import shown_path
from megarl.cli.whole_tables import print_whole
from megarl.config.base import ConfigError
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory, make_numbered
from megarl.telemetry.run_lock import RunHeldError, hold_run

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_WARM = "warm start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOptions:
    """What may be other when an ablation goes on; None: as it was."""

    at_once: int | None = None
    retries: int | None = None


def run_ablate(console: Console, file: Path, arguments: Sequence[str], *, dry_run: bool) -> int:
    """Check all runs, then make them; the exit code. dry_run: print them alone."""
    ablation = load_ablation(file, arguments)
    check_ablation(ablation)
    needs = find_needs(run.config for run in ablation.first_runs)
    slots, less = find_slots(needs, ablation.config.at_once)
    print_runs(console, ablation)
    if less:
        say(console, less)
    if kept := describe_kept(find_shapes(ablation, needs)):
        say(console, kept)
    check_costs(console, ablation, at_once=len(slots))
    if dry_run:
        return 0
    directory = make_directory(ablation)
    launch = write_launch(directory, ablation, needs)
    return _drive(console, directory, launch, slots)


def open_ablation(path: Path) -> AblationDirectory:
    """ConfigError where it is none, or is damaged."""
    try:
        directory = AblationDirectory.open(path)
        directory.standings()
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"megarl ablate --resume {path}: {error}") from error
    return directory


def resume_ablate(console: Console, directory: AblationDirectory, options: ResumeOptions) -> int:
    """Go on with an ablation that stopped: what is finished stays, what has begun goes on from its checkpoint."""
    try:
        launch = read_launch(directory)
    except ValueError as error:
        raise ConfigError(f"megarl ablate --resume {shown_path(directory.path)}: {error}") from error
    launch = replace(
        launch,
        at_once=launch.at_once if options.at_once is None else options.at_once,
        retries=launch.retries if options.retries is None else options.retries,
    )
    slots, less = find_slots(launch.needs, launch.at_once)
    if less:
        say(console, less)
    print_rest(console, directory, launch, at_once=len(slots))
    return _drive(console, directory, launch, slots)


def make_path(ablation: Ablation) -> Path:
    """Where its directory would be if it were made now."""
    parent = Path(ablation.config.output).expanduser().resolve()
    return parent / f"{ablation.config.name}-ablation-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def make_directory(ablation: Ablation) -> AblationDirectory:
    """A new one, with the plan in it."""
    wanted = make_path(ablation)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    path = make_numbered(wanted.parent, wanted.name)
    return AblationDirectory.create(path, ablation.plan, source=ablation.file.read_text(encoding="utf-8"))


def print_runs(console: Console, ablation: Ablation) -> None:
    """The settings as a table: what sets each apart."""
    fields = list(dict.fromkeys(field for setting in ablation.plan.settings for field in setting.values))
    table = Table(box=None, pad_edge=False)
    for header in ("setting", *fields, "fragments", "seeds"):
        table.add_column(header, no_wrap=True)
    for setting in ablation.plan.settings:
        seeds = " ".join(str(cell.seed) for cell in ablation.plan.cells_of(setting.name))
        mark = " (control)" if setting.name == ablation.plan.control else ""
        mark += f" (to {setting.control})" if setting.control else ""
        values = (str(setting.values.get(field, "")) for field in fields)
        files = " ".join(Path(name).name for name in setting.fragments)
        table.add_row(*(Text(text) for text in (f"{setting.name}{mark}", *values, files, seeds)))
    say(console, f"{ablation.config.name}: {len(ablation.runs)} runs of {ablation.base}")
    print_whole(console, table)
    if ablation.warm is not None and ablation.warm.sft is not None:
        say(console, f"before them a warm start of {ablation.warm.sft.steps} updates, with whose weights all begin")


def _drive(console: Console, directory: AblationDirectory, launch: Launch, slots: Sequence[Slot]) -> int:
    where = shown_path(directory.path)
    try:
        hold_run(directory.path)
    except RunHeldError as error:
        raise RunHeldError(f"{where} is being run: {error}; stop it first") from error
    say(console, f"ablation  {where}")
    warm = _make_warm_start(console, directory, launch, slots)
    if warm is not None:
        return warm
    tasks = [_cell_task(directory, launch, cell, facts) for cell, facts in _standings(directory)]
    _say_what_goes_on(console, tasks)
    write = functools.partial(_write_cells, console, directory)
    driver = _run_tasks(console, tasks, slots, retries=launch.retries, write=write)
    if driver.stopped_by is not None and any(facts.status != "finished" for facts in driver.facts.values()):
        return _say_goes_on(console, directory)
    return tell_end(console, directory, driver.facts, again="tries them again")


def _make_warm_start(
    console: Console, directory: AblationDirectory, launch: Launch, slots: Sequence[Slot]
) -> int | None:
    """The exit code where there are no weights to begin with in the end; None where all is well."""
    if launch.warm is None:
        return None
    task = _task(_WARM, launch.warm, launch, link=directory.warm, log=directory.path / "warm.log")
    run = task.run()
    if run is not None and run.standing()[0] == "finished":
        return None
    if run is not None and run.standing()[0] == "running":
        task = replace(task, before=CellFacts(status="running", attempts=1))
    elif run is not None:
        say(console, f"{_WARM} ({run.standing()[0]}): begins again, since it cannot go on")
    alone = [replace(slots[0], cores=frozenset())]
    driver = _run_tasks(console, [task], alone, retries=launch.retries, write=lambda _: None)
    facts = driver.facts[_WARM]
    if driver.stopped_by is not None:  # also where it was finished by then: no run is begun after a signal
        return _say_goes_on(console, directory)
    if facts.status == "finished":
        return None
    message = f"the warm start failed: {facts.message}"
    skipped = {
        cell.name: replace(of_cell, status="skipped", message=message)
        for cell, of_cell in _standings(directory)
        if directory.run_of(cell) is None
    }
    before, _ = directory.read_cells()
    _write_cells(console, directory, before | skipped)
    say(console, f"{message}\nno run was begun")
    return EXIT_FAILED


def _run_tasks(
    console: Console,
    tasks: Sequence[Task],
    slots: Sequence[Slot],
    *,
    retries: int,
    write: Callable[[Mapping[str, CellFacts]], None],
) -> Driver:
    with AblationDisplay(console, tasks, at_once=len(slots)) as display:
        driver = Driver(tasks, slots, retries=retries, watcher=display, write=write)
        driver.run()
        display.finish(driver.facts)
    return driver


def _standings(directory: AblationDirectory) -> list[tuple[Cell, CellFacts]]:
    standings = directory.standings()
    return [(cell, standings[cell.name]) for cell in directory.plan().cells]


def _cell_task(directory: AblationDirectory, launch: Launch, cell: Cell, facts: CellFacts) -> Task:
    start = launch.cells[cell.name]
    task = _task(cell.name, start, launch, link=directory.link_of(cell), log=directory.log_of(cell))
    return replace(task, before=facts, keeper=find_keeper_start(directory, launch, start))


def _task(name: str, start: Start, launch: Launch, *, link: Path, log: Path) -> Task:
    command = [sys.executable, "-m", "megarl.cli.main", *start.arguments, "--run", str(link)]

    def begin(slot: Slot) -> RunProcess:
        return start_process(
            command,
            log=log,
            working_directory=Path(launch.working_directory),
            environment=os.environ,
            slot=slot,
        )

    return Task(name=name, link=link, log=log, steps=start.steps, start=begin)


def _write_cells(console: Console, directory: AblationDirectory, facts: Mapping[str, CellFacts]) -> None:
    """A disk that is full stops no run: what the runs themselves have written counts."""
    try:
        directory.write_cells(facts, ProcessMark.of(os.getpid()))
    except OSError as error:
        say(console, f"{directory.cells_path.name} keeps its last state: {error.strerror or error}")


def _say_what_goes_on(console: Console, tasks: Sequence[Task]) -> None:
    """Of an ablation that goes on: what becomes of each run that there is."""
    finished = [task.name for task in tasks if task.before.status == "finished"]
    if finished:
        say(console, f"{len(finished)} of {len(tasks)} runs are finished and stay as they are")
    for task in tasks:
        run = task.run()
        if run is None or task.before.status in ("finished", "running"):
            if run is not None and task.before.status == "running":
                say(console, f"{task.name}: its process outlived the driver, and is waited for")
            continue
        say(console, f"{task.name} ({task.before.status}): {_describe_start(run)}")


def _describe_start(run: RunDirectory) -> str:
    from megarl.checkpoint.run_checkpoint import newest_checkpoint

    saved = newest_checkpoint(run.checkpoints)
    if saved is None:
        return "begins again: it has no complete checkpoint"
    return f"goes on after step {saved.step}, from its checkpoint"


def tell_end(console: Console, directory: AblationDirectory, facts: Mapping[str, CellFacts], *, again: str) -> int:
    """Write and print the tables, and say which runs are not finished; the exit code. again: what going on does with
    them."""
    where = shown_path(directory.path)
    tabulated = finish_tables(console, directory)
    logs = {cell.name: directory.log_of(cell) for cell in directory.plan().cells}
    unfinished = {name: of_cell for name, of_cell in facts.items() if of_cell.status != "finished"}
    for name, of_cell in unfinished.items():
        told = f": {of_cell.message}" if of_cell.message else ""
        see = f"; see {shown_path(logs[name])}" if logs[name].is_file() else ""
        say(console, f"{name}: {of_cell.status}{told}{see}")
    say(console, f"ablation  {where}")
    if not unfinished:
        return 0 if tabulated else EXIT_FAILED
    say(console, f"{len(unfinished)} of {len(facts)} runs are not finished; megarl ablate --resume {where} {again}")
    return EXIT_FAILED


def _say_goes_on(console: Console, directory: AblationDirectory) -> int:
    say(console, f"interrupted; megarl ablate --resume {shown_path(directory.path)} goes on")
    return EXIT_INTERRUPTED


def say(console: Console, text: str) -> None:
    """As it is: no markup, no line breaks of the console's."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
