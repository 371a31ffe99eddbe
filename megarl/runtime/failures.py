"""Calls to workers, each with an end: a failure is told with the worker's role, its rank and the end of its log."""

import asyncio
import errno
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.exceptions

from megarl.config.base import ConfigError
from megarl.policy.reports import NonFiniteLossError
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineError, EngineLost, ResidualMemoryError
from megarl.runtime.workers import Worker
from megarl.telemetry.logs import tail

T = TypeVar("T")

LOG_LINES = 30
BLAME_WAIT_S = 5.0
_REPEATS = (NonFiniteLossError, NotImplementedError, RecursionError)
_OF_MACHINE = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}


class WorkerFailed(RuntimeError):
    """A worker raised, died or did not end; the message is for a person."""


class WorkerDied(WorkerFailed):
    """A worker's process is gone, or does not answer."""


class WorkerStuck(WorkerFailed):
    """A worker's process answers, but what it was asked for is not done in time."""


class EngineBroken(WorkerFailed):
    """The worker of an engine says that vLLM cannot go on."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether a run that this has ended may get further when it is started again: a worker is gone, hangs, or cannot
    reach another one; sleeping engines keep too much of a GPU; Ray itself failed; or a worker met an error of torch,
    CUDA, NCCL, gloo, vLLM or a device.

    Not what the same step would meet again, which is everything else: a configuration, a loss that is not finite, an
    error of the program, a full disk, a reward function that raises.
    """
    match error:
        case WorkerDied() | TransportError() | EngineLost() | ResidualMemoryError():
            return True
        case WorkerFailed():
            cause = getattr(error.__cause__, "cause", None)  # what Ray brought from the worker
            return not isinstance(cause, BaseException) or _is_of_machine(cause)
        case ray.exceptions.RayTaskError():
            return False
    return isinstance(error, ray.exceptions.RayError)


def _is_of_machine(cause: BaseException) -> bool:
    """torch, NCCL, gloo and vLLM raise RuntimeErrors. Of one that could not be pickled Ray brings a RayError."""
    if isinstance(cause, OSError):
        return isinstance(cause, ConnectionError | TimeoutError) or cause.errno in _OF_MACHINE
    return isinstance(cause, RuntimeError | ray.exceptions.RayError) and not isinstance(cause, _REPEATS)


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a call may take, and what sets it."""

    seconds: float
    name: str
    """Of the configuration's field, with what to do where that is not to raise it."""

    def __str__(self) -> str:
        return f"{self.seconds:g} s ({self.name})"


async def call(worker: Worker[Any], reference: Awaitable[T], *, doing: str, limit: Limit | None) -> T:
    """Await what `Worker.ask` returned. doing: what the worker was asked for, as an infinitive.

    limit: None only for work whose progress the worker itself watches; its process is watched in any case.

    Raises:
        ConfigError, TransportError: the worker raised one.
        WorkerDied: its process is gone, or does not answer.
        WorkerStuck: it was not done within the limit.
        EngineBroken: the worker raised an EngineError.
        WorkerFailed: it raised something else.
    """
    task = asyncio.ensure_future(_translate(worker, reference))
    worker.asked_to(doing)
    # Where nobody waits for its answer any more it is still at it.
    task.add_done_callback(lambda answered: None if answered.cancelled() else worker.has_done(doing))
    try:
        waited: list[asyncio.Future[Any]] = [task, worker.lost]
        await asyncio.wait(waited, timeout=limit.seconds if limit else None, return_when=asyncio.FIRST_COMPLETED)
        if worker.lost.done():  # and killed, which is all that Ray would say
            raise WorkerDied(_describe(worker, f"did not {doing}: it {worker.lost.result()}"))
        if task.done():
            return task.result()
        raise WorkerStuck(_describe(worker, f"did not {doing} within {limit}"))
    finally:
        task.cancel()


async def _translate(worker: Worker[Any], reference: Awaitable[T]) -> T:
    """A failure becomes WorkerFailed; a ConfigError and a TransportError stay such."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from None
        if isinstance(cause, TransportError):
            raise TransportError(f"{worker}: {cause}") from None
        kind = EngineBroken if isinstance(cause, EngineError) else WorkerFailed
        raise kind(_describe(worker, f"raised {type(cause).__name__}: {cause}")) from error
    except ray.exceptions.RayActorError as error:
        worker.ended = True
        raise WorkerDied(_describe(worker, f"died: {_first_line(error)}")) from error


async def call_together(workers: Sequence[Worker[Any]], calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results, in order, of calls to workers that need each other, one each; one failure fails all.

    When one fails, the others may fail within `BLAME_WAIT_S`: of those that do, a worker whose process is gone is the
    cause, and so is one that is stopped; one that raised because its peer is gone or silent is not.
    """
    tasks: list[asyncio.Task[T]] = [asyncio.create_task(call) for call in calls]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending and not _any_died(tasks):
            await asyncio.wait(pending, timeout=BLAME_WAIT_S)
        if _failures(tasks) and not _any_died(tasks):
            silent = [(worker, task) for worker, task in zip(workers, tasks, strict=True) if not task.done()]
            await asyncio.gather(*(_suspect(worker, workers) for worker, _ in silent))
            if lost := [task for worker, task in silent if worker.lost.done()]:
                await asyncio.wait(lost, timeout=BLAME_WAIT_S)  # their calls hear of it
        if failures := _failures(tasks):
            raise next((error for error in failures if isinstance(error, WorkerDied)), failures[0])
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


async def gather_all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Results in order. A lost engine, or a version that did not come whole, is raised once all have ended, so that
    what the others do is not disturbed by what is asked of them next; the first failure of another kind at once."""

    async def outcome(answer: Awaitable[T]) -> T | EngineLost | TransportError:
        try:
            return await answer
        except (EngineLost, TransportError) as error:
            return error

    outcomes = await asyncio.gather(*map(outcome, calls))
    if lost := [each for each in outcomes if isinstance(each, EngineLost)]:
        raise EngineLost("; ".join(map(str, lost))) from lost[0]
    results = []
    for each in outcomes:
        if isinstance(each, EngineLost | TransportError):
            raise each
        results.append(each)
    return results


async def _suspect(worker: Worker[Any], peers: Sequence[Worker[Any]]) -> None:
    """A peer has failed, and this worker has not said anything."""
    if not await worker.answers(within_s=BLAME_WAIT_S):
        await worker.tell_stacks(peers)  # while there is a process
        worker.give_up(f"has not answered for {BLAME_WAIT_S:g} s, and another worker failed waiting for it")


def _any_died(tasks: Iterable["asyncio.Task[T]"]) -> bool:
    return any(isinstance(error, WorkerDied) for error in _failures(tasks))


def _failures(tasks: Iterable["asyncio.Task[T]"]) -> list[BaseException]:
    return [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())]


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _describe(worker: Worker[Any], what: str) -> str:
    log = worker.name.log
    lines = "".join(f"\n  | {line}" for line in tail(log, LOG_LINES).splitlines())
    return f"{worker} {what}\nEnd of {log}:{lines}"
