"""The program of this process begun anew, with a run that goes on: same process, terminal, parent and lock on the run.

Light: what a command line imports before it knows its verb.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from megarl.telemetry.keeper_file import KEEPER_VARIABLE
from megarl.telemetry.run_lock import keep_lock_over_exec

_MODULE = ("-m", "megarl.cli.main")
_STANDARD = 3
"""Descriptors below are standard input, output and error."""


class RunAgain(Exception):
    """The process shall go on with this run, begun anew."""

    def __init__(self, run: Path) -> None:
        super().__init__(str(run))
        self.run = run


@dataclass(frozen=True, slots=True)
class Given:
    """What this process was given when it began, and what it gives to the program that it becomes."""

    environment: Mapping[str, str]
    """Ray, and others, put their own into it since."""
    descriptors: frozenset[int]
    """Open files of whoever started it, such as the lock of `flock FILE megarl train`."""

    @classmethod
    def now(cls) -> Self:
        """Before anything is opened."""
        return cls(dict(os.environ), frozenset(filter(os.get_inheritable, _open_descriptors())))


def start_again(run: Path, given: Given) -> NoReturn:
    """Become `megarl train --resume RUN`, with engines of its own. SystemExit where that fails, the reason said."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be closed
    command = [sys.executable, *find_program(sys.orig_argv, sys.argv), "train", "--resume", str(run)]
    try:
        for descriptor in _open_descriptors() - given.descriptors:
            os.set_inheritable(descriptor, False)  # a library has opened it to last
        keep_lock_over_exec(run)
        _reap()
        sys.stdout.flush()
        sys.stderr.flush()
        # Engines that a keeper had for the run ended with its failure.
        environment = {name: value for name, value in given.environment.items() if name != KEEPER_VARIABLE}
        os.execve(sys.executable, command, environment)
    except OSError as error:
        print(f"{run} does not go on by itself: {' '.join(command)}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(1)


def find_program(original: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """What follows the interpreter on the command line, up to the verb: its options, and the script or the module.

    original, arguments: sys.orig_argv and sys.argv. Where they do not belong together, the command as a module.
    """
    typed = list(arguments[1:])
    program = list(original[1 : len(original) - len(typed)])
    return program if program and list(original[len(original) - len(typed) :]) == typed else list(_MODULE)


def _open_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            os.fstat(descriptor)
        except OSError:
            continue  # that of the listing itself
        if descriptor >= _STANDARD:
            found.add(descriptor)
    return found


def _reap() -> None:
    """Children that have ended would be nobody's afterwards."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
