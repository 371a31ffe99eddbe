"""A failure in a worker, told with its role, its rank and the end of its log."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions

from megarl.config.base import ConfigError
from megarl.reshard.signals import TransportError
from megarl.telemetry.logs import tail

T = TypeVar("T")

LOG_LINES = 30
BLAME_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Which worker a call went to."""

    role: str
    rank: int
    log: Path

    def __str__(self) -> str:
        return f"{self.role} rank {self.rank}"


class WorkerFailed(RuntimeError):
    """A worker raised or died; the message is for a person."""


class WorkerDied(WorkerFailed):
    """A worker's process is gone."""


async def call(worker: WorkerName, reference: Awaitable[T]) -> T:
    """Await a Ray reference; a failure becomes WorkerFailed, a ConfigError and a TransportError stay such."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from None
        if isinstance(cause, TransportError):
            raise TransportError(f"{worker}: {cause}") from None
        raise WorkerFailed(_describe(worker, f"raised {type(cause).__name__}: {cause}")) from error
    except ray.exceptions.RayActorError as error:
        raise WorkerDied(_describe(worker, f"died: {_first_line(error)}")) from error


async def call_together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results, in order, of calls whose workers need each other; one failure fails all.

    When one fails, the others may fail within `BLAME_WAIT_S`: of those that do, a worker whose process is gone is the
    cause, and one that raised because its peer is gone is not.
    """
    tasks: list[asyncio.Task[T]] = [asyncio.create_task(call) for call in calls]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending and not any(isinstance(error, WorkerDied) for error in _failures(tasks)):
            await asyncio.wait(pending, timeout=BLAME_WAIT_S)
        if failures := _failures(tasks):
            raise next((error for error in failures if isinstance(error, WorkerDied)), failures[0])
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def _failures(tasks: Iterable["asyncio.Task[T]"]) -> list[BaseException]:
    return [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())]


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _describe(worker: WorkerName, what: str) -> str:
    lines = "".join(f"\n  | {line}" for line in tail(worker.log, LOG_LINES).splitlines())
    return f"{worker} {what}\nEnd of {worker.log}:{lines}"
