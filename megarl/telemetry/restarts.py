"""Failures of machines after which a run goes on by itself, and when it does not any more.

Whoever starts it again goes by the same rules: the job's script (slurm.attempts), or the run's own process where it is
of no job (cli.restart), which keeps what happened in restarts.json of the run's directory.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from megarl.telemetry.atomic_file import write_text_atomically

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0


class Crash(Protocol):
    """One end of a run by a failure."""

    @property
    def step(self) -> int:
        """Finished steps when it ended."""

    @property
    def text(self) -> str:
        """What failed, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One that ended the run, and what followed."""

    at_s: float
    """Since 1970."""
    step: int
    """Finished steps when it ended."""
    text: str
    driver: str
    """The mark of the process that drove the run. One that goes on by itself stays the same process; one that a person
    starts again is another, and begins to count anew."""
    goes_on_s: float | None = None
    """When it starts again, since 1970; None: it does not."""
    verdict: str = ""
    """What followed, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What follows a failure."""

    pause_s: float | None
    """After which the run starts again; None: it does not."""
    text: str


def decide_restart(
    failures: Sequence[Failure],
    *,
    restarts: int,
    first_pause_s: float,
    began: bool,
    from_step: int | None,
    exported: bool,
) -> Restart:
    """After the last of the failures of one process.

    restarts, first_pause_s: cluster.restarts and restart_pause_s. began: whether the workers had started, and a first
    step begun. from_step: of the newest complete checkpoint, None without one: then the run starts over. exported:
    whether it has exported weights, which that would take away.
    """
    last, count = failures[-1], len(failures)
    if count == 1 and not began:
        text = "it failed before its first step, as a configuration does that cannot work; start it again by hand"
        return Restart(pause_s=None, text=text)
    if count > 1 and fails_alike(failures[-2], last):
        return Restart(pause_s=None, text=f"step {last.step + 1} failed twice in the same way; it would do so again")
    if count > restarts:
        return Restart(pause_s=None, text=f"the run failed {count} times, of which cluster.restarts allows {restarts}")
    if from_step is None and exported:
        text = "there is no complete checkpoint, and starting over would take away the weights that were exported"
        return Restart(pause_s=None, text=text)
    pause_s = pause_after(count, first_s=first_pause_s)
    where = "starts over: there is no complete checkpoint" if from_step is None else f"goes on after step {from_step}"
    return Restart(pause_s=pause_s, text=f"in {pause_s:g} s the run {where} (restart {count} of at most {restarts})")


def pause_after(crashes: int, *, first_s: float = FIRST_PAUSE_S) -> float:
    """Seconds before the next start: twice as long each time, and an hour at most, or `first_s` where that is more."""
    longest = max(first_s, LONGEST_PAUSE_S)
    doubled = math.ldexp(first_s, min(crashes - 1, 64))
    return min(doubled, longest)


def fails_alike(one: Crash, other: Crash) -> bool:
    """Whether both failed at one step in one way: by the first line of the text, numbers left out."""
    return one.step == other.step and _kind(one.text) == _kind(other.text)


def read_failures(path: Path) -> list[Failure]:
    """Of restarts.json, the first one first; none where there is no such file. ValueError where it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise TypeError
        return [Failure(**facts) for facts in found]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: expected a list of failures, found {text[:80]!r}") from error


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Replace restarts.json."""
    write_text_atomically(path, json.dumps([asdict(failure) for failure in failures], indent=2) + "\n")


def _kind(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", first)
