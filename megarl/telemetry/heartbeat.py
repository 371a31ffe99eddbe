"""heartbeat.json in a run directory: what every process of the run is doing.

The driver replaces it whole every `BEAT_S` seconds while its event loop turns, from what it has asked of the workers
and from when each last answered. So a file that grows old means: the driver is gone, stopped, or held up by a call that
does not return (state.json, touched by a thread, tells the first from the others). How a run ended, state.json says;
its last heartbeat stays.

    {"written_s": 1795000000.0, "step": 12, "steps": 300,
     "processes": [
       {"role": "controller", "rank": 0, "node": "n1", "pid": 4711, "phase": "update", "for_s": 3.2,
        "silent_s": 0.0, "step": 12},
       {"role": "policy", "rank": 0, "node": "n1", "pid": 4802, "phase": "make an update", "for_s": 1.1,
        "silent_s": 4.0, "step": 12},
       {"role": "rollout", "rank": 0, "node": "", "pid": null, "phase": "start", "for_s": 9.0, "silent_s": 9.0,
        "step": 0}]}
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megarl.telemetry.atomic_file import write_text_atomically

BEAT_S = 5.0
IDLE = "idle"
"""The phase of a process of which nothing is asked."""
LOST = "lost"
"""Of one that does not answer any more and was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessBeat:
    """One process."""

    role: str
    """"controller" (the driver), "policy" or "rollout", as in the names of the logs: logs/<role>-<rank>.log."""
    rank: int
    node: str
    """Host name; "" before it has answered once."""
    pid: int | None
    """None before it has answered once."""
    phase: str
    """Of the driver its phase of the step or of the start-up, several at a time with ", " between; of a worker what the
    driver waits for it to do, likewise; or `IDLE`, or `LOST`."""
    for_s: float
    """Seconds since the first of them began; of an engine that samples, since its last responses came."""
    silent_s: float
    """Seconds since its process last answered that it lives, which it is asked every 10 s or, with a short
    cluster.worker_silence_s, more often; since it was started where it has not yet."""
    step: int
    """The step it works for, from 1; 0 during the start-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """All processes of a run at one moment."""

    written_s: float
    """Seconds since 1970 by the driver's clock."""
    step: int
    """The step under way, or the last one; 0 before the first."""
    steps: int
    """Of the whole run."""
    processes: tuple[ProcessBeat, ...]
    """The driver first, then the policy ranks, then the engines."""

    @property
    def driver(self) -> ProcessBeat:
        return self.processes[0]

    def age_s(self, *, now_s: float | None = None) -> float:
        """Seconds since it was written, 0 where the clocks of two machines say less; now_s: default now."""
        return max(0.0, (time.time() if now_s is None else now_s) - self.written_s)


def write_heartbeat(path: Path, heartbeat: Heartbeat) -> None:
    """Replace the file whole. OSError where the disk does not take it."""
    write_text_atomically(path, json.dumps(asdict(heartbeat)) + "\n")


def read_heartbeat(path: Path) -> Heartbeat | None:
    """None where there is no file: nothing of the run has started, or it is not of this version. ValueError, naming the
    file, where it is none of megarl's."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple(ProcessBeat(**_known(ProcessBeat, each)) for each in facts["processes"])
        return Heartbeat(**{**_known(Heartbeat, facts), "processes": processes})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no heartbeat of a run: {type(error).__name__}: {error}") from error


def _known(kind: type[Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What else is in it is from another version of megarl."""
    return {field.name: facts[field.name] for field in fields(kind) if field.name in facts}
