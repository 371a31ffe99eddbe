"""What is asked of Slurm, by its own commands. Each has a limit: a controller that is busy answers late, or never."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError

_TIMEOUT_S = 60.0
_FIELDS = ("%i", "%T", "%M", "%l", "%N", "%r", "%S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A job, or a cell of an array, as squeue has it."""

    state: str
    """PENDING, RUNNING, COMPLETED ..."""
    elapsed: str
    limit: str
    nodes: str
    reason: str
    """Why it waits; "None" where it does not."""
    start: str
    """When it began or is expected to; "N/A" where nobody knows."""

    def __str__(self) -> str:
        if self.state == "PENDING":
            when = "" if self.start == "N/A" else f", expected {self.start}"
            return f"PENDING ({self.reason}{when})"
        return f"{self.state} {self.elapsed} of {self.limit} on {self.nodes}" if self.nodes else self.state


def has_slurm() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def try_script(script: str) -> tuple[bool, str]:
    """(whether Slurm would take the script, what it says): when and where it would begin, or what it refuses."""
    done = _ask(["sbatch", "--test-only"], script)
    return done.returncode == 0, _words(done.stderr or done.stdout)


def submit_script(path: Path, *, after: str | None = None) -> str:
    """The job's number. ConfigError with Slurm's words where it is not taken.

    after: a job without whose success it does not begin; where that fails for good, it is taken out of the queue.
    """
    depends = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    done = _ask(["sbatch", "--parsable", *depends, str(path)])
    if done.returncode:
        raise ConfigError(f"Slurm does not take {path}: {_words(done.stderr)}")
    return done.stdout.strip().partition(";")[0]


def cancel_job(number: str) -> None:
    """Take it out of the queue; what cannot be told to Slurm any more is left."""
    _ask(["scancel", number])


def find_queued(job: str) -> dict[str, Queued]:
    """By number ("17", of a cell "17_2") what squeue knows of a job; empty when it has left the queue."""
    done = _ask(["squeue", "--noheader", "--array", "--states=all", f"--job={job}", f"--format={'|'.join(_FIELDS)}"])
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return {}
        raise ConfigError(f"squeue does not answer: {_words(done.stderr)}")
    return parse_queue(done.stdout)


def parse_queue(listing: str) -> dict[str, Queued]:
    """Of squeue with the format of `find_queued`."""
    found = {}
    for line in listing.splitlines():
        number, state, elapsed, limit, nodes, reason, start = line.strip().split("|")
        found[number] = Queued(state=state, elapsed=elapsed, limit=limit, nodes=nodes, reason=reason, start=start)
    return found


def _ask(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not on this machine; run this where jobs are submitted") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} did not answer within {_TIMEOUT_S:g} s; is Slurm's controller up?") from None


def _words(text: str) -> str:
    """Without the program's name at the head of each line."""
    return "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in text.strip().splitlines())
