"""A process that scores answers, one at a time, in its main thread. It never imports torch.

Its protocol is in `messages`. It ends when the parent closes the socket, and is ended by the kernel when the parent is
gone, whatever it is busy with.
"""

import contextlib
import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, assert_never

from megarl.config.base import ConfigError
from megarl.rewards.item import NoNumberError
from megarl.rewards.messages import (
    OUT_OF_MEMORY_EXIT,
    Checked,
    Failed,
    GroundTruth,
    Question,
    Ready,
    Reply,
    Scored,
    Taken,
)
from megarl.rewards.user_function import describe_error
from megarl.rewards.verifiers import Verify, build_answer_check, build_verifier
from megarl.telemetry.lifeline import be_first_to_die_of_memory, die_with_parent
from megarl.telemetry.stacks import hear_stack_requests

_GIB = 2**30


def main(data_fd: int, life_fd: int) -> None:
    """Serve until the parent closes `data_fd`; `life_fd` is the read end of a pipe that only the parent holds open."""
    die_with_parent(life_fd)
    be_first_to_die_of_memory()
    hear_stack_requests()
    os.set_inheritable(data_fd, False)
    connection: Connection[Any, Any] = Connection(data_fd)
    with contextlib.suppress(EOFError):  # the parent closed the socket: done
        config, data_config = connection.recv()
        try:
            verify = build_verifier(config.verifier, data_config)
            check = build_answer_check(config.verifier)
        except Exception as error:
            connection.send(_describe_failure(error))
            return
        _limit_memory(config.memory_gib)
        connection.send(Ready())
        while True:
            question = connection.recv()
            connection.send(Taken())
            connection.send(_answer(verify, check, question))


def _answer(verify: Verify, check: Callable[[str], None], question: Question | GroundTruth) -> Reply:
    try:
        match question:
            case Question(prompt=prompt, response=response):
                return Scored(verify(prompt, response))
            case GroundTruth(text=text):
                return Checked(_find_problem(check, text))
    except MemoryError:  # what is left of the process is not to be trusted
        print("a reward worker is out of memory (reward.memory_gib) and ends", file=sys.stderr, flush=True)
        os._exit(OUT_OF_MEMORY_EXIT)
    except Exception as error:
        return _describe_failure(error)
    assert_never(question)


def _find_problem(check: Callable[[str], None], answer: str) -> str | None:
    try:
        check(answer)
    except ValueError as error:
        return str(error)
    return None


def _describe_failure(error: Exception) -> Failed:
    match error:
        case ConfigError():
            return Failed(str(error), "", kind="config")
        case NoNumberError():
            return Failed(str(error), "", kind="no number")
        case _:
            return Failed(describe_error(error), "".join(traceback.format_exception(error)))


def _limit_memory(gib: float) -> None:
    """Private memory of this process, and of each that it starts, beyond what the verifier took to build."""
    limit = _data_bytes() + int(gib * _GIB)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
