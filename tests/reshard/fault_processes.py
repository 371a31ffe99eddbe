"""Processes that hold an object each and call its methods when told to, and that may be killed, stopped and resumed.

Whatever happens, none outlives the `with` block.
"""

import contextlib
import itertools
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch
from torch import Tensor

from megarl.reshard import receiver
from megarl.reshard.checksum import Checksums
from megarl.reshard.pack import Part, compute_part_checksums, views_between
from megarl.reshard.packer import Packer
from megarl.reshard.plan import Place
from megarl.reshard.tally import Tally
from tests.dist.forks import fork_context

Action = Literal["kill", "stop", "flip", "change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a call went."""

    value: Any = None
    error: str = ""
    """Of an exception "Type: text"; empty when there was none."""
    trace: str = ""
    seconds: float = 0.0
    died: bool = False


class Processes:
    """`make(number)` in each of `count` processes; a context manager."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count, self._make = count, make
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> "Processes":
        context = fork_context()
        try:
            for number in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(self._make, number, theirs), daemon=True)
                process.start()
                theirs.close()  # the child's end; without this a dead child would not read as end of file
                self._processes.append(process)
                self._pipes.append(ours)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=False):
            pipe.close()
            process.kill()  # a stopped process too
            process.join()

    def order(self, number: int, method: str, *args: Any) -> None:
        """Start a call."""
        self._pipes[number].send((method, args))

    def collect(self, numbers: Iterable[int], *, timeout_s: float = 60.0) -> dict[int, Answer]:
        """The answers to the last calls. TimeoutError naming the processes that gave none and still run."""
        pending = {self._pipes[number]: number for number in numbers}
        answers = {}
        deadline = time.monotonic() + timeout_s
        while pending:
            ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"processes {sorted(pending.values())} did not answer within {timeout_s:g} s")
            for pipe in ready:
                number = pending.pop(pipe)  # type: ignore[call-overload]
                try:
                    answers[number] = pipe.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    answers[number] = Answer(died=True)
        return dict(sorted(answers.items()))

    def call(self, numbers: Iterable[int], method: str, *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """The same call in several processes at once; RuntimeError with the traceback of one that failed."""
        numbers = list(numbers)
        for number in numbers:
            self.order(number, method, *args)
        answers = self.collect(numbers, timeout_s=timeout_s)
        for number, answer in answers.items():
            if answer.died or answer.error:
                raise RuntimeError(
                    f"process {number} {'died' if answer.died else 'failed'} in {method}\n{answer.trace}"
                )
        return [answers[number].value for number in numbers]

    def kill(self, number: int) -> None:
        """End a process at once."""
        self._processes[number].kill()
        self._processes[number].join()

    def resume(self, number: int) -> None:
        """Let a stopped process go on."""
        os.kill(self._processes[number].pid, signal.SIGCONT)


def _serve(make: Callable[[int], Any], number: int, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    held = make(number)
    with contextlib.suppress(EOFError):  # the parent has left
        while True:
            method, args = pipe.recv()
            started = time.monotonic()
            try:
                answer = Answer(value=getattr(held, method)(*args))
            except Exception as error:
                answer = Answer(
                    error=f"{type(error).__name__}: {error}",
                    trace=traceback.format_exc(),
                    seconds=time.monotonic() - started,
                )
            pipe.send(answer)


def arm(action: Action, *, after: int) -> None:
    """Once, when this process has computed the checksums of its `after`-th message from now: kill it, stop it, flip a
    bit of the message, or (a policy rank) change the parameter that it begins with."""
    count = itertools.count(1)

    pack = Packer.pack

    def compute_then_act(elements: Tensor, parts: tuple[Part, ...], keyed: Checksums) -> Sequence[int]:
        checksums = compute_part_checksums(elements, parts, keyed)
        act(elements)
        return checksums

    def pack_then_act(packer: Packer, place: Place, out: Tensor, tally: Tally) -> list[int]:
        checksums = pack(packer, place, out, tally)
        key, start, stop = place
        _, first = next(views_between(packer._parameters, packer._blocks[key], start, stop))
        act(out if action != "change" else first)
        return checksums

    def act(elements: Tensor) -> None:
        if next(count) == after:
            match action:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "flip":
                    elements.view(torch.uint8)[0] ^= 1
                case "change":
                    elements += 1

    Packer.pack = pack_then_act  # type: ignore[method-assign]
    receiver.compute_part_checksums = compute_then_act  # type: ignore[assignment]
