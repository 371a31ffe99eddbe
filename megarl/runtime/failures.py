"""A failure in a worker, told with its role, rank, node and the end of its log."""

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
import ray.exceptions

from megarl.config.base import ConfigError
from megarl.telemetry.logs import tail

T = TypeVar("T")

LOG_LINES = 30


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


async def call(worker: WorkerName, reference: Awaitable[T]) -> T:
    """Await a Ray reference; a failure becomes WorkerFailed, a ConfigError stays one."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from None
        raise WorkerFailed(_describe(worker, f"raised {type(cause).__name__}: {cause}")) from error
    except ray.exceptions.RayActorError as error:
        raise WorkerFailed(_describe(worker, f"died: {_first_line(error)}")) from error


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _describe(worker: WorkerName, what: str) -> str:
    lines = "".join(f"\n  | {line}" for line in tail(worker.log, LOG_LINES).splitlines())
    return f"{worker} {what}\nEnd of {worker.log}:{lines}"
