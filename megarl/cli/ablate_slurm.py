"""`megarl ablate --slurm`: the runs of an ablation as one Slurm array, a run an index.

    slurm/                job.sbatch, job.json, cell-0/, cell-1/, ...: a job's directory (slurm.job_directory)
    slurm/warm/           the shared warm start's, a job of its own; the array begins when that has succeeded
    cells/NAME            a link to the link that the array's task makes: slurm/cell-0/run

The array's tasks need no driver: each looks after its own run, as one that `megarl submit` has submitted does.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from megarl.ablation.cells import Ablation, load_ablation
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.launch import Launch, build_launch, name_copies, read_launch, warm_start_weights, write_launch
from megarl.cli.ablate import make_directory, make_path, print_runs, say, tell_end
from megarl.cli.ablate_checks import check_ablation
from megarl.cli.ablate_room import find_needs
from megarl.cli.ablation_costs import check_costs
from megarl.cli.ablation_jobs import array_path, find_jobs, warm_path
from megarl.cli.paths import shown_path
from megarl.cli.session import describe_saves
from megarl.cli.submit import print_script
from megarl.cli.submit_checks import check_job, find_hidden_paths, find_run_problems
from megarl.cli.submit_options import SubmitOptions, build_job_of, cluster_overrides, read_paths
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.slurm.job import Cell, Job
from megarl.slurm.job_directory import RUN, SCRIPT, JobDirectory
from megarl.slurm.queue import cancel_job, find_queued, has_slurm, submit_script, try_script
from megarl.slurm.script import render_script

_WAITS = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")


def run_ablate_slurm(
    console: Console, file: Path, arguments: Sequence[str], options: SubmitOptions, *, dry_run: bool
) -> int:
    """Check everything that can be checked from here, then submit; dry_run: print the array's script alone."""
    ablation = load_ablation(file, [*arguments, *cluster_overrides(options)])
    check_ablation(ablation, lambda config: _find_problems(config, options))
    _check_together(ablation)
    options = _with_file(ablation, options)
    if dry_run:
        return _print_script(ablation, options)
    print_runs(console, ablation)
    check_costs(console, ablation, at_once=options.at_once or len(ablation.runs))
    directory = make_directory(ablation)
    try:
        launch = write_launch(directory, ablation, find_needs(run.config for run in ablation.first_runs))
        number = _submit(console, ablation, directory, launch, options)
    except BaseException:
        shutil.rmtree(directory.path, ignore_errors=True)  # nothing of it is known to Slurm
        raise
    nodes = ablation.runs[0].config.cluster.nodes
    say(console, f"submitted  job {number}: {len(ablation.runs)} runs on {nodes} node{'s' if nodes > 1 else ''} each")
    say(console, f"ablation   {shown_path(directory.path)}")
    say(console, f"see        megarl status {shown_path(directory.path)}")
    say(console, f"tabulate   megarl ablate --resume {shown_path(directory.path)}")
    return 0


def submit_again(console: Console, directory: AblationDirectory) -> int:
    """`--resume DIR --slurm`: the same scripts once more; tasks whose run is finished end at once."""
    jobs = find_jobs(directory)
    if jobs is None:
        raise ConfigError(
            f"megarl ablate --resume {shown_path(directory.path)} --slurm: it was not submitted; leave out --slurm"
        )
    array, warm = jobs
    try:
        launch = read_launch(directory)  # of one that was moved the scripts would write where it was
    except ValueError as error:
        raise ConfigError(f"megarl ablate --resume {shown_path(directory.path)} --slurm: {error}") from error
    if queued := _still_queued(jobs):
        raise ConfigError(f"megarl ablate --resume {shown_path(directory.path)} --slurm: job {queued} is in the queue")
    after = None
    if warm is not None and launch.warm and not warm_start_weights(directory, launch.warm.steps).is_dir():
        after = submit_script(warm.path / SCRIPT)
        warm.write(warm.read() | {"job": after})
    number = submit_script(array.path / SCRIPT, after=after)
    array.write(array.read() | {"job": number})
    say(console, f"submitted  job {number}: runs that are finished stay as they are")
    return 0


def look_at_array(console: Console, directory: AblationDirectory) -> int:
    """`--resume DIR` of an ablation that was submitted: how its runs stand, and their tables; nothing is started."""
    jobs = find_jobs(directory)
    queued = _still_queued(jobs) if jobs is not None else None
    if queued is not None:
        say(console, f"job {queued} is in the queue: what is there so far")
    return tell_end(console, directory, directory.standings(), again="--slurm submits them once more")


def _still_queued(jobs: tuple[JobDirectory, JobDirectory | None]) -> str | None:
    if not has_slurm():
        return None
    numbers = [str(job.read()["job"]) for job in jobs if job is not None]
    waits = (number for number in numbers if any(one.state in _WAITS for one in find_queued(number).values()))
    return next(waits, None)


def _find_problems(config: RunConfig, options: SubmitOptions) -> Iterator[str]:
    return find_run_problems(config, on_gpu=options.gpus_per_node != 0, gpu_gib=options.gpu_memory_gib)


def _check_together(ablation: Ablation) -> None:
    """The cells of an array have one job's nodes, and must see the same file systems."""
    configs = [run.config for run in ablation.first_runs]
    problems = [
        f"cluster.{field}: the runs of an array have the nodes of one job, and settings have {sorted(values)}"
        for field in ("nodes", "gpus_per_node")
        if len(values := {getattr(config.cluster, field) for config in configs}) > 1
    ]
    problems += find_hidden_paths([*read_paths(configs), Path(ablation.config.output).expanduser().absolute()])
    if problems:
        raise ConfigError("\n".join(problems), problems)


def _with_file(ablation: Ablation, options: SubmitOptions) -> SubmitOptions:
    """at_once and retries of the file, where it sets them and the command does not."""
    own = ablation.config
    at_once = options.at_once or (own.at_once if "at_once" in own.model_fields_set else None)
    return replace(options, at_once=at_once, restarts=own.retries)


def _build_jobs(
    ablation: Ablation, directory: AblationDirectory, launch: Launch, options: SubmitOptions
) -> tuple[Job, Job | None]:
    """(the array, the job of the shared warm start)."""
    command = ["megarl", *sys.argv[1:]]
    writes = {"directory": str(directory.runs)}
    runs = [_writing(run.config, writes) for run in ablation.runs]
    base = next(iter(launch.cells.values())).arguments[1]
    cells = [Cell(index=run.cell.index, overrides=launch.cells[run.cell.name].arguments[2:]) for run in ablation.runs]
    array = build_job_of(
        runs, options, name=ablation.config.name, train=(base,), cells=cells, directory=array_path(directory),
        command=command,
    )  # fmt: skip
    check_job(array)
    if ablation.warm is None or launch.warm is None:
        return array, None
    warm = build_job_of(
        [_writing(ablation.warm, writes)], replace(options, at_once=None), name=ablation.warm.name,
        train=launch.warm.arguments[1:], cells=(), directory=warm_path(directory), command=command,
    )  # fmt: skip
    return array, replace(warm, verb="sft")


def _writing(config: RunConfig, writes: dict[str, str]) -> RunConfig:
    return config.model_copy(update={"logging": config.logging.model_copy(update=writes)})


def _print_script(ablation: Ablation, options: SubmitOptions) -> int:
    """Of the array; nothing is written."""
    directory = AblationDirectory(make_path(ablation))
    kept = name_copies([ablation.base, *ablation.fragments], directory.sources)
    needs = find_needs(run.config for run in ablation.first_runs)
    array, _ = _build_jobs(ablation, directory, build_launch(ablation, directory, needs, kept), options)
    return print_script(array, options)


def _submit(
    console: Console, ablation: Ablation, directory: AblationDirectory, launch: Launch, options: SubmitOptions
) -> str:
    """The array's number."""
    array, warm = _build_jobs(ablation, directory, launch, options)
    for job in filter(None, (warm, array)):
        taken, words = try_script(render_script(job, options.template))
        if not taken:
            raise ConfigError(f"Slurm does not take the job: {words}")
        say(console, f"Slurm      {words}")
    if note := describe_saves(ablation.runs[0].config, "train"):
        say(console, f"note       {note}")
    after = None
    if warm is not None:
        after = _hand_in(warm, options, [])
        directory.warm.symlink_to(Path("slurm") / "warm" / RUN)
    try:
        number = _hand_in(array, options, [[run.cell.name] for run in ablation.runs], after=after)
    except BaseException:
        if after is not None:
            cancel_job(after)
        raise
    for run in ablation.runs:
        directory.link_of(run.cell).symlink_to(Path("..") / "slurm" / f"cell-{run.cell.index}" / RUN)
    return number


def _hand_in(job: Job, options: SubmitOptions, cells: list[list[str]], *, after: str | None = None) -> str:
    """Write the job's directory and give it to Slurm; its number."""
    job.directory.mkdir(parents=True, exist_ok=True)
    path = job.directory / SCRIPT
    # What it waits for is told beside it: submitted again, it has nothing to wait for.
    path.write_text(render_script(job, options.template), encoding="utf-8")
    number = submit_script(path, after=after)
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"job": number, "submitted": submitted, "command": job.command, "cells": cells}
    JobDirectory(job.directory).write(facts)
    return number
