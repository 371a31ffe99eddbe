"""`megarl status`: how jobs and runs stand, from the queue and from what they write."""

import time
from collections.abc import Sequence
from pathlib import Path

from megarl.ablation.directory import AblationDirectory, Cell, CellFacts, is_ablation
from megarl.cli.ablation_jobs import find_jobs
from megarl.cli.paths import shown_path
from megarl.cli.run_facts import describe_restarts, find_saved
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.slurm.attempts import Attempt
from megarl.slurm.job_directory import JobDirectory, RunOfJob, find_job
from megarl.slurm.queue import Queued, find_queued, has_slurm
from megarl.slurm.times import format_seconds
from megarl.telemetry.heartbeat import read_heartbeat
from megarl.telemetry.run_directory import RunDirectory

_GOES_ON = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")
"""States of a job of which more is to come."""


def run_status(paths: Sequence[Path]) -> int:
    """Print a block for every run; the exit code: 1 where one of them failed, was killed or is given up."""
    blocks: list[str] = []
    good = True
    for path in paths:
        for lines, well in _describe(path):
            blocks.append("\n".join(lines))
            good &= well
    print("\n\n".join(blocks))
    return 0 if good else 1


def _describe(path: Path) -> list[tuple[list[str], bool]]:
    if is_ablation(path):
        return _describe_ablation(AblationDirectory.open(path))
    found = find_job(path)
    if found is not None:
        job, runs = found
        return _describe_job(job, runs)
    try:
        run = RunDirectory.open(path)
    except FileNotFoundError:
        raise ConfigError(
            f"megarl status: {path} is neither a run, nor a job, nor an ablation; expected a directory that "
            "`megarl submit`, `train` or `ablate` made, such as runs/latest"
        ) from None
    lines, well = _describe_run(run)
    return [(["job        none: the run was not submitted", *lines], well)]


def _describe_job(job: JobDirectory, runs: Sequence[RunOfJob]) -> list[tuple[list[str], bool]]:
    queue = find_queued(job.read()["job"]) if has_slurm() else {}
    return [_describe_run_of_job(job, run, queue) for run in runs]


def _describe_ablation(ablation: AblationDirectory) -> list[tuple[list[str], bool]]:
    """The job of its warm start and those of its array, where it was submitted; else its runs by what they write."""
    if (jobs := find_jobs(ablation)) is not None:
        array, warm = jobs
        return [*(_describe_job(warm, warm.runs()) if warm else ()), *_describe_job(array, array.runs())]
    try:
        cells = ablation.plan().cells
    except ValueError as error:
        raise ConfigError(f"megarl status: {error}") from error
    return [_describe_cell(ablation, cell) for cell in cells]


def _describe_cell(ablation: AblationDirectory, cell: Cell) -> tuple[list[str], bool]:
    """What cannot be read of one hides no other."""
    try:
        return _describe_readable_cell(ablation, cell, ablation.standing_of(cell))
    except (ConfigError, OSError, ValueError) as error:
        return [f"cell       {cell.name}: unknown: {error}"], False


def _describe_readable_cell(ablation: AblationDirectory, cell: Cell, facts: CellFacts) -> tuple[list[str], bool]:
    tried = f", {facts.attempts} attempts" if facts.attempts > 1 else ""
    told = f": {facts.message}" if facts.message else ""
    lines = [f"cell       {cell.name}: {facts.status}{tried}{told}"]
    run = ablation.run_of(cell)
    if run is not None:
        lines += _describe_run(RunDirectory(run))[0]
    return lines, facts.status not in ("failed", "skipped")


def _describe_run_of_job(job: JobDirectory, run: RunOfJob, queue: dict[str, Queued]) -> tuple[list[str], bool]:
    facts = job.read()
    cell = None if run.path == job.path else int(run.path.name.removeprefix("cell-"))
    number = facts["job"] if cell is None else f"{facts['job']}_{cell}"
    queued = queue.get(number)
    what = "" if cell is None else f"  {' '.join(facts['cells'][cell])}"
    lines = [f"job        {number} {queued or _unknown()}{what}"]
    in_queue = queued is not None and queued.state in _GOES_ON
    lines += _describe_attempts(run.read_attempts(), in_queue=in_queue)
    directory = run.run()
    if directory is None:
        return [*lines, f"run        not begun; logs in {shown_path(run.path)}"], in_queue
    more, well = _describe_run(directory, over=queued is not None and not in_queue)
    return lines + more, well or in_queue


def _unknown() -> str:
    return "no longer in the queue" if has_slurm() else "(no Slurm on this machine)"


def _describe_attempts(attempts: Sequence[Attempt], *, in_queue: bool) -> list[str]:
    if not attempts:
        return ["attempt    none yet"]
    last = attempts[-1]
    lines = [f"attempt    {last.number} on {last.nodes}, begun {format_seconds(time.time() - last.began_s)} ago"]
    for attempt in attempts:
        if attempt.ending is not None:
            first = attempt.text.partition("\n")[0]
            lines.append(
                f"           {attempt.number}: {attempt.ending} after step {attempt.step}: {first}; {attempt.verdict}"
            )
        elif attempt is not last or not in_queue:
            lines.append(f"           {attempt.number}: lost, it went on after step {attempt.from_step}")
    return lines


def _describe_run(run: RunDirectory, *, over: bool = False) -> tuple[list[str], bool]:
    """over: the job has ended, whatever the run could still say of itself."""
    status, message = run.standing()
    if over and status == "running":
        status, message = "killed", "it ended with its job"
    steps = load_config(run.config_path).train.steps
    lines = [
        f"run        {shown_path(run.path)}",
        f"step       {run.read_state().step} of {steps}, {status}" + (f": {message}" if message else ""),
        *(
            f"{'' if number else 'restarts':<11}{line}"
            for number, line in enumerate(describe_restarts(run.restarts_path))
        ),
        f"heartbeat  {_describe_heartbeat(run)}",
    ]
    saved = find_saved(run, warn=True)
    lines.append(f"checkpoint {saved.describe(now_s=time.time()) if saved else 'none'}")
    return lines, status in ("running", "finished", "interrupted")


def _describe_heartbeat(run: RunDirectory) -> str:
    """Its age, and what the driver did then; of a run that has written none yet, of its last sign of life."""
    try:
        beat = read_heartbeat(run.heartbeat_path)
    except ValueError as error:
        return str(error)
    if beat is None:
        return f"{format_seconds(time.time() - run.state_path.stat().st_mtime)} ago"
    return f"{format_seconds(beat.age_s())} ago: {beat.driver.phase}"
