"""Where everything of a submitted job lies, on a file system that its nodes see.

job.sbatch         the script
job.json           its number in Slurm, what was typed, the cells of a sweep
quickstart.toml    the configuration and its fragments as they were when the job was submitted
run                a link to the run, from its first attempt on; the run has a link `job` that leads back
attempts.json      its attempts (slurm.attempts)
logs/attempt-0/    batch.log (this script), a log for every node, the trainer's exit code
cell-0/, cell-1/   of a sweep: the last three, for each of its runs
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megarl.slurm.attempts import Attempt
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.run_directory import RunDirectory

SCRIPT, FACTS, RUN, BACK = "job.sbatch", "job.json", "run", "job"


@dataclass(frozen=True, slots=True)
class RunOfJob:
    """The part of a job's directory that belongs to one run: the whole of it, or a cell's."""

    path: Path

    @property
    def link(self) -> Path:
        return self.path / RUN

    def run(self) -> RunDirectory | None:
        """None: no attempt has begun it."""
        with suppress(FileNotFoundError):
            return RunDirectory.open(self.link)
        return None

    def logs(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt}"

    def read_attempts(self) -> list[Attempt]:
        try:
            text = (self.path / "attempts.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [Attempt.from_json(facts) for facts in json.loads(text)]

    def write_attempts(self, attempts: Sequence[Attempt]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(attempt) for attempt in attempts], indent=2) + "\n"
        write_text_atomically(self.path / "attempts.json", text)


@dataclass(frozen=True, slots=True)
class JobDirectory:
    """A job that was submitted."""

    path: Path

    def read(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.path / FACTS).read_text(encoding="utf-8"))
        return facts

    def write(self, facts: dict[str, Any]) -> None:
        write_text_atomically(self.path / FACTS, json.dumps(facts, indent=2) + "\n")

    def runs(self) -> list[RunOfJob]:
        """One, or those of a sweep's cells in their order."""
        cells = self.read()["cells"]
        return [RunOfJob(self.path / f"cell-{index}") for index in range(len(cells))] or [RunOfJob(self.path)]


def find_job(path: Path) -> tuple[JobDirectory, list[RunOfJob]] | None:
    """The job, and those of its runs that are meant, of a job's directory, a cell's, or a run that a job made."""
    found = path.expanduser().resolve()
    back = found / BACK
    if back.is_symlink():
        found = back.resolve()
    if (found / FACTS).is_file():
        job = JobDirectory(found)
        return job, job.runs()
    if (found.parent / FACTS).is_file() and found.name.startswith("cell-"):
        return JobDirectory(found.parent), [RunOfJob(found)]
    return None


def link_run(run: Path, link: Path) -> None:
    """Make `link` lead to the run, and the run's own link `job` lead back to where that lies.

    Both are relative: a directory that has both in it may be moved.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    for place, target in ((run / BACK, link.parent), (link, run)):
        partial = place.with_name(f".{place.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
        os.replace(partial, place)
