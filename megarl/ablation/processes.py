"""The process of one run: started with its output in a file, or found alive after whoever had started it was killed."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megarl.telemetry.run_directory import RunDirectory

STOPPED = 130
"""Exit code of a run that a signal has ended in order (cli.session)."""
REFUSED = 2
"""Of one whose configuration cannot work."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one run on this machine."""

    variables: Mapping[str, str]
    """Of its environment, such as which GPUs it sees."""
    descriptors: tuple[int, ...] = ()
    """Open files that it holds as long as it lives."""
    cores: frozenset[int] = frozenset()
    """Those that its processes keep to; empty: all that there are."""


class RunProcess(Protocol):
    """What the driver asks of the process of a run."""

    def poll(self) -> int | None:
        """The exit code, as subprocess has it; None while it lives."""

    def send_signal(self, number: int) -> None:
        """Without effect where it has ended."""


def start_process(
    command: Sequence[str],
    *,
    log: Path,
    working_directory: Path,
    environment: Mapping[str, str],
    slot: Slot,
    standard_input: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Its output is appended to `log`. It is a session of its own: a Ctrl-C of the terminal reaches the driver alone,
    which hands it on once. environment: to which the slot's variables are added.

    OSError where it cannot be started, or its cores are none of this machine's; then no process is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command,
            cwd=working_directory,
            env={**environment, **slot.variables},
            stdin=standard_input,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=slot.descriptors,
        )
    if slot.cores:
        # Milliseconds after its start: it has one thread, and whatever it starts takes this over.
        try:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, slot.cores)
        except OSError:  # cores that have gone since they were counted; nobody would know of the process
            process.kill()
            process.wait()
            raise
    return process


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """Of a run that an earlier driver has started, and that outlived it."""

    run: RunDirectory

    def poll(self) -> int | None:
        """By the run's state: nobody else can ask for its exit code."""
        try:
            standing = self.run.standing()[0]
        except (OSError, ValueError, TypeError):  # its state cannot be read: whoever asks for it next is told so
            return 1
        match standing:
            case "running":
                return None
            case "finished":
                return 0
            case "interrupted":
                return STOPPED
            case "killed":
                return -signal.SIGKILL
        return 1

    def send_signal(self, number: int) -> None:
        driver = self.run.driver()
        if driver is not None and driver.standing() == "alive":
            with suppress(ProcessLookupError):
                os.kill(driver.pid, number)


def last_words(log: Path, *, lines: int = 3) -> str:
    """The end of what a process has printed, for one that left no other message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
