"""What several verbs say of a run, in the same words: `megarl status`, `megarl top`."""

import time
from dataclasses import dataclass
from pathlib import Path

from megarl.checkpoint.run_checkpoint import newest_checkpoint, read_checkpoints
from megarl.slurm.times import format_seconds
from megarl.telemetry.restarts import Failure, read_failures
from megarl.telemetry.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The newest complete checkpoint of a run."""

    step: int
    at_s: float
    """When it was complete, since 1970."""

    def describe(self, *, now_s: float) -> str:
        return f"step {self.step}, {format_seconds(now_s - self.at_s)} ago"


def find_saved(run: RunDirectory, *, warn: bool) -> Saved | None:
    """None where there is none. warn: log why what has a checkpoint's name is none; a screen has no room for that."""
    if warn:
        newest = newest_checkpoint(run.checkpoints)
    else:
        newest = max(read_checkpoints(run.checkpoints)[0], key=lambda found: found.step, default=None)
    return None if newest is None else Saved(step=newest.step, at_s=newest.path.stat().st_mtime)


def describe_restarts(path: Path, *, now_s: float | None = None) -> list[str]:
    """A line for each failure in restarts.json, after which the run went on by itself, or did not."""
    now_s = time.time() if now_s is None else now_s
    try:
        return [_describe_failure(failure, now_s) for failure in read_failures(path)]
    except ValueError as error:
        return [str(error)]


def _describe_failure(failure: Failure, now_s: float) -> str:
    when, first = format_seconds(now_s - failure.at_s), failure.text.partition("\n")[0]
    return f"{when} ago: failed after step {failure.step}: {first}; {failure.verdict}"
