"""All workers of a run: what each is doing, and where in its code."""

import asyncio
import time
from typing import Any, TypeVar

from megarl.runtime.workers import Answering, Worker
from megarl.telemetry.heartbeat import IDLE, LOST, ProcessBeat

A = TypeVar("A", bound=Answering)

_ORDER = ("policy", "rollout")


class Roster:
    """Filled while workers are started; on the event loop on which they are asked."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, int], Worker[Any]] = {}

    def add(self, worker: Worker[A]) -> Worker[A]:
        """The worker, who takes the place of an earlier one of its name."""
        self._workers[worker.name.role, worker.name.rank] = worker
        return worker

    @property
    def workers(self) -> list[Worker[Any]]:
        """Policy ranks first, then engines, by rank."""

        def place(worker: Worker[Any]) -> tuple[int, str, int]:
            role = worker.name.role
            return (_ORDER.index(role) if role in _ORDER else len(_ORDER), role, worker.name.rank)

        return sorted(self._workers.values(), key=place)

    @property
    def pids(self) -> list[int]:
        """Numbers of their processes that live on this machine."""
        marks = (worker.mark for worker in self._workers.values())
        return [mark.pid for mark in marks if mark is not None and mark.standing() == "alive"]

    def beats(self, *, step: int) -> list[ProcessBeat]:
        """Of all of them, who work for this step."""
        return [_beat_of(worker, step=step) for worker in self.workers]

    async def tell_stacks(self) -> list[str]:
        """Of all of them, in their order; takes seconds. Why there are none, where there are none."""
        workers = self.workers
        return await asyncio.gather(*(worker.tell_stacks(workers) for worker in workers))


def _beat_of(worker: Worker[Any], *, step: int) -> ProcessBeat:
    now_s = time.monotonic()
    busy = worker.busy_with
    phase = LOST if worker.ended or worker.lost.done() else ", ".join(busy) or IDLE
    since_s = min(busy.values(), default=worker.idle_s)
    return ProcessBeat(
        role=worker.name.role,
        rank=worker.name.rank,
        node=worker.mark.host if worker.mark else "",
        pid=worker.mark.pid if worker.mark else None,
        phase=phase,
        for_s=round(now_s - since_s, 3),
        silent_s=round(now_s - worker.heard_s, 3),
        step=step,
    )
