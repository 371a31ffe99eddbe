"""The processes that keep Ray and engines between runs of an ablation, as the driver of the runs sees them.

    none --a run of a shape begins--> kept --the run exits with 0--> kept --a run of the same shape--> ...
                                        |--any other exit, or its own end-------------------.
                                        '--a run of another shape is next, or none is-------+--> ending --> none

A keeper reads a pipe whose other end this process and the runs hold, so that it ends after the last of them.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megarl.ablation.processes import Slot, start_process
from megarl.telemetry.keeper_file import KEEPER_PROCESS_VARIABLE, KEEPER_VARIABLE
from megarl.telemetry.process_mark import ProcessMark

_END_LIMIT_S = 180.0
"""Longer than all limits of a keeper's own end."""


class Keeper:
    """One of them."""

    def __init__(self, process: subprocess.Popen[bytes], shape: str, given: Slot) -> None:
        """shape: of its engines. given: what a run gets that uses it."""
        self.shape, self.given = shape, given
        self._process = process
        self._killed_s: float | None = None
        """When it is killed, if it has not ended by then."""

    @property
    def has_ended(self) -> bool:
        """Also kills one that was told to end and does not."""
        if self._process.poll() is not None:
            self._let_go()
            return True
        if self._killed_s is not None and time.monotonic() > self._killed_s:
            self._process.kill()
        return False

    def end(self) -> None:
        """Tell it to. Idempotent."""
        if self._killed_s is None:
            self._killed_s = time.monotonic() + _END_LIMIT_S
            self._process.send_signal(signal.SIGTERM)

    def _let_go(self) -> None:
        descriptors, self.given = self.given.descriptors, replace(self.given, descriptors=())
        for descriptor in descriptors:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class KeeperStart:
    """How the keeper of a run is started."""

    shape: str
    """Runs with the same one may use it one after the other."""
    start: Callable[[Slot], Keeper]
    """In a slot. OSError where it does not start."""


@dataclass(eq=False, slots=True)
class Place:
    """A slot, and what is kept in it from one run to the next."""

    slot: Slot
    keeper: Keeper | None = field(default=None)

    def rank(self, shape: str | None) -> int:
        """How well it is fit for a run of this shape, best first: its engines are there; nothing is; others are."""
        if self.keeper is None:
            return 1
        return 0 if self.keeper.shape == shape and not self.keeper.has_ended else 2

    def open(self, wanted: KeeperStart | None) -> Slot:
        """What a run gets here, of which `rank` was not 2. OSError where its keeper does not start."""
        if wanted is None:
            return self.slot
        if self.keeper is None:
            self.keeper = wanted.start(self.slot)
        return self.keeper.given

    def clear(self) -> None:
        """End what is kept."""
        if self.keeper is not None:
            self.keeper.end()

    @property
    def is_clear(self) -> bool:
        """Whether nothing is kept."""
        if self.keeper is not None and self.keeper.has_ended:
            self.keeper = None
        return self.keeper is None


def start_keeper(
    command: Sequence[str],
    *,
    shape: str,
    slot: Slot,
    directory: Path,
    working_directory: Path,
    environment: Mapping[str, str],
) -> Keeper:
    """command: `python -m megarl.cli.keeper`; what follows is added. directory: a new one, of this keeper alone; what
    it prints goes to keeper.log in it."""
    (directory / "logs").mkdir(parents=True)
    reading, writing = os.pipe()
    # Whoever may use its Ray: the keeper, and runs that are given it.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": environment.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)}
    try:
        process = start_process(
            command,
            log=directory / "logs" / "keeper.log",
            working_directory=working_directory,
            environment={**environment, **token},
            slot=slot,
            standard_input=reading,
        )
        mark = ProcessMark.of(process.pid)
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    variables = {**slot.variables, **token, KEEPER_VARIABLE: str(directory), KEEPER_PROCESS_VARIABLE: str(mark)}
    return Keeper(process, shape, Slot(variables, descriptors=(writing,), cores=slot.cores))
