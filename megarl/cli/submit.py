"""`megarl submit`: a configuration as a Slurm job that looks after itself."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from megarl.cli.paths import shown_path
from megarl.cli.session import describe_saves
from megarl.cli.submit_checks import check_asked, check_job
from megarl.cli.submit_options import Asked, SubmitOptions, build_job, describe_facts, load_asked
from megarl.config.base import ConfigError
from megarl.slurm.job import Job
from megarl.slurm.job_directory import SCRIPT, JobDirectory
from megarl.slurm.queue import has_slurm, submit_script, try_script
from megarl.slurm.script import render_script
from megarl.telemetry.run_directory import make_numbered

_REFUSED = 1


def run_submit(config: Path, arguments: Sequence[str], options: SubmitOptions, *, dry_run: bool) -> int:
    """Check everything that can be checked from here, then submit, or print the script alone; the exit code."""
    asked = load_asked(config, arguments, options)
    check_asked(asked)
    parent = Path(asked.first.logging.directory).expanduser().absolute() / "jobs"
    name = f"{asked.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    command = ["megarl", *sys.argv[1:]]
    job = build_job(asked, directory=parent / name, command=command)
    check_job(job)
    if dry_run:
        return print_script(job, options)
    parent.mkdir(parents=True, exist_ok=True)
    directory = make_numbered(parent, name)
    try:
        job = replace(job, directory=directory, train=asked.train_arguments(directory))
        number = _submit(asked, job, options)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # nothing of it is known to Slurm
        raise
    facts = describe_facts(
        asked, number=number, command=command, submitted=datetime.now(UTC).isoformat(timespec="seconds")
    )
    JobDirectory(directory).write(facts)
    cells = f", {len(job.cells)} cells" if job.cells else ""
    print(f"submitted  job {number}: {job.name} on {job.nodes} node{'s' if job.nodes > 1 else ''}{cells}")
    print(f"directory  {shown_path(directory)}")
    print(f"see        megarl status {shown_path(directory)}")
    return 0


def print_script(job: Job, options: SubmitOptions) -> int:
    """The script on standard output, what Slurm says of it on standard error; 1 where it would not take it."""
    script = render_script(job, options.template)
    print(script, end="")
    if not has_slurm():
        print("Slurm was not asked: there is no sbatch on this machine", file=sys.stderr)
        return 0
    taken, words = try_script(script)
    print(f"Slurm: {words}", file=sys.stderr)
    return 0 if taken else _REFUSED


def _submit(asked: Asked, job: Job, options: SubmitOptions) -> str:
    for name, file in asked.sources.items():
        shutil.copyfile(file, job.directory / name)
    script = render_script(job, options.template)
    taken, words = try_script(script)
    if not taken:
        raise ConfigError(f"Slurm does not take the job: {words}")
    print(f"Slurm      {words}")
    if note := describe_saves(asked.first, "train"):
        print(f"note       {note}")
    path = job.directory / SCRIPT
    path.write_text(script, encoding="utf-8")
    return submit_script(path)
