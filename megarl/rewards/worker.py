"""A process that scores answers, one at a time, in its main thread. It never imports torch.

Protocol, over one socket: the parent sends (verifier config, data config), the worker answers Ready or Failed; then for
every (prompt, response) it answers Taken, then Scored or Failed. It ends when the parent closes the socket, and is
ended by the kernel when the parent is gone, whatever it is busy with.
"""

import contextlib
import fcntl
import os
import select
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from megarl.rewards.verifiers import Verify, build_verifier


@dataclass(frozen=True, slots=True)
class Ready:
    """The verifier is built."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The question was read: a worker that dies before this did not die of it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The verifier's score of the last answer."""

    value: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The verifier raised."""

    error: str
    """Type and message."""
    trace: str


def main(data_fd: int, life_fd: int) -> None:
    """Serve until the parent closes `data_fd`; `life_fd` is the read end of a pipe that only the parent holds open."""
    _die_with_parent(life_fd)
    _be_first_to_die_of_memory()
    os.set_inheritable(data_fd, False)
    connection: Connection[Any, Any] = Connection(data_fd)
    with contextlib.suppress(EOFError):  # the parent closed the socket: done
        verifier_config, data_config = connection.recv()
        try:
            verify = build_verifier(verifier_config, data_config)
        except Exception as error:
            connection.send(_describe_failure(error))
            return
        connection.send(Ready())
        while True:
            prompt, response = connection.recv()
            connection.send(Taken())
            connection.send(_score(verify, prompt, response))


def _score(verify: Verify, prompt: Any, response: str) -> Scored | Failed:
    try:
        return Scored(verify(prompt, response))
    except Exception as error:
        return _describe_failure(error)


def _describe_failure(error: Exception) -> Failed:
    return Failed(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def _die_with_parent(life_fd: int) -> None:
    """Let the kernel end this process group when the pipe's other end closes.

    The default action of SIGIO ends a process without asking the interpreter, so a regular expression that hangs with
    the interpreter's lock held ends too. (PR_SET_PDEATHSIG would fire when the parent's *thread* ends.)
    """
    os.set_inheritable(life_fd, False)
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life_fd], [], [], 0)[0]:  # the parent went before the signal was armed
        os._exit(1)


def _be_first_to_die_of_memory() -> None:
    """An answer that eats the machine's memory must cost this process, not the trainer."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # Linux only
        file.write("1000")
