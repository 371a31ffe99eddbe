"""A conversion's units shared among processes.

A process that fails or dies ends the others, and its error is the conversion's.
"""

import dataclasses
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from megarl.checkpoint.conversion import (
    Job,
    check_units,
    list_check_units,
    list_units,
    open_source,
    share_units,
    write_units,
)
from megarl.checkpoint.dist_writer import Written
from megarl.checkpoint.errors import CheckpointError, is_out_of_memory
from megarl.models.shape import ModelError
from megarl.telemetry.resident_memory import peak_resident_bytes

Phase = Literal["write", "check"]

_LISTEN_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a process has done."""

    written: Written
    peak_bytes: int
    """The most memory it had."""


def run_share(job: Job, phase: Phase, *, index: int, count: int, advance: Callable[[int], None]) -> Outcome:
    """Share `index` of `count` of a phase, in this process; `advance` is told the bytes of each unit."""
    source = open_source(job.source, job.model)
    try:
        units = list_units(job, source) if phase == "write" else list_check_units(job, source)
        units = share_units(job, source, units, index=index, count=count)
        if phase == "check":
            check_units(job, source, units, advance=advance)
            return Outcome(Written(), peak_resident_bytes())
        written = write_units(job, source, units, index=index, count=count, advance=advance)
        return Outcome(written, peak_resident_bytes())
    finally:
        source.close()


def run_shares(job: Job, phase: Phase, *, count: int, advance: Callable[[int], None]) -> list[Outcome]:
    """All shares of a phase, each in a process of its own; in this one where `count` is 1."""
    if count == 1:
        return [run_share(job, phase, index=0, count=1, advance=advance)]
    context = multiprocessing.get_context("spawn")
    processes: list[Any] = []
    connections: dict[Any, Any] = {}
    resource_tracker.ensure_running()  # which lets interrupts through again, so not between the two lines that block
    try:
        for index in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(job, phase, index, count, theirs), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            processes.append(process)
            connections[ours] = process
        return _collect(connections, advance)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _collect(connections: dict[Any, Any], advance: Callable[[int], None]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    open_ones = set(connections)
    while open_ones:
        ready: Any
        advance(0)  # who listens may end it
        for ready in wait(list(open_ones), timeout=_LISTEN_S):
            match _receive(ready, connections[ready], advance):
                case ("bytes", count):
                    advance(count)
                case ("done", outcome):
                    outcomes.append(outcome)
                    open_ones.discard(ready)
                case ("failed", error):
                    raise error
    return outcomes


def _receive(connection: Any, process: Any, advance: Callable[[int], None]) -> Any:
    """What the process said; CheckpointError where it died, within a word or before one."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        process.join()
        advance(0)  # a signal that ended the process may have come to this one too, and is the reason then
        raise CheckpointError(
            f"a process of the conversion died (exit code {process.exitcode}); nothing was kept. Killed by 9 it mostly "
            "ran out of memory: use fewer --processes"
        ) from None


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started meanwhile never hears a terminal's Ctrl-C, which reaches every process: the one that
    started it ends it. From its very beginning: it imports for seconds."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(job: Job, phase: Phase, index: int, count: int, connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        _send_share(job, phase, index, count, connection)
    except BrokenPipeError:
        return  # the process that started this one is gone


def _send_share(job: Job, phase: Phase, index: int, count: int, connection: Connection) -> None:
    try:
        outcome = run_share(job, phase, index=index, count=count, advance=lambda size: connection.send(("bytes", size)))
        connection.send(("done", outcome))
    except BrokenPipeError:
        raise
    except (CheckpointError, ModelError, OSError) as error:
        connection.send(("failed", error))
    except Exception as error:
        text = f"a process of the conversion failed:\n{traceback.format_exc()}"
        connection.send(("failed", MemoryError(str(error)) if is_out_of_memory(error) else RuntimeError(text)))
