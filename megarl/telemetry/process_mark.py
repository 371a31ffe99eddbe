"""Which process did something, so that anybody can tell later whether it still lives.

A process number alone is given away again; with the moment the process began, the boot of its machine and its PID
namespace (a container's numbers are its own) it names one process for ever.
"""

import math
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

DRIVER_VARIABLE = "MEGARL_DRIVER"
"""In the environment of every process of a run: the mark of the process that drives it, as `str` gives it."""
RUN_VARIABLE = "MEGARL_RUN"
"""Likewise: the run directory."""
WORKER_VARIABLE = "MEGARL_WORKER"
"""In the environment of a worker and all that it starts: its role and rank, as "rollout-1"."""

Standing = Literal["alive", "dead", "elsewhere"]
"""elsewhere: on another machine or in another container, where this process cannot look."""


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process of one machine."""

    host: str
    boot: str
    """The kernel's id of the machine's boot."""
    namespace: str
    """The kernel's name of the PID namespace."""
    pid: int
    started: int
    """Clock ticks after the boot (/proc/PID/stat, field 22)."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The mark of a process that this one can see. ProcessLookupError when there is none."""
        started = start_ticks(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(socket.gethostname(), boot_id(), _namespace(), pid, started)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `str(mark)`. ValueError when it is none."""
        host, boot, namespace, pid, started = text.split("/")
        return cls(host, boot, namespace, int(pid), int(started))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host}/{self.boot}/{self.namespace}/{self.pid}/{self.started}"

    def standing(self, *, age_s: float = math.inf) -> Standing:
        """Whether the process lives, as far as can be told from here; a zombie is dead.

        age_s: of the last thing it did. What is younger than this machine's boot, by a process of another boot, comes
        from another machine of the same name (containers and clones have such), not from before a restart of this one.
        """
        if self.boot != boot_id():
            here = self.host == socket.gethostname() and age_s > time.clock_gettime(time.CLOCK_BOOTTIME)
            return "dead" if here else "elsewhere"
        if self.namespace != _namespace():
            return "elsewhere"
        return "alive" if start_ticks(self.pid) == self.started else "dead"


def boot_id() -> str:
    """The same for all processes since the machine was started, and for no other machine's."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When process `pid` began, in clock ticks after the boot; None when there is none, or only its zombie."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[19])


def parent_of(pid: int) -> int | None:
    """The process number of its parent; None as for `start_ticks`."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[1])


def is_stopped(pid: int) -> bool:
    """Whether process `pid` is stopped, by SIGSTOP or another signal, and does nothing until somebody lets it go on."""
    fields = _stat_fields(pid)
    return fields is not None and fields[0] == "T"


def process_state(pid: int) -> str:
    """What process `pid` does, in words, from /proc."""
    states = {"T": "stopped (by SIGSTOP)", "t": "stopped by a debugger", "D": "waiting for a device or a file system"}
    fields = _stat_fields(pid)
    return "gone" if fields is None else states.get(fields[0], f"alive (state {fields[0]})")


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on."""
    try:
        # The name in parentheses may hold anything, spaces and parentheses included.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
