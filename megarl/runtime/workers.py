"""The run's worker processes as the driver sees them: a name, an actor to ask, and whether its process answers."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import ray

from megarl.telemetry.process_mark import ProcessMark, process_state
from megarl.telemetry.stacks import all_stacks, stacks_of

_START_TIMEOUT_S = 300.0
_POLL_S = 1.0
_PAUSE_S = 10.0
STACKS_WAIT_S = 5.0

LIVENESS = "liveness"
"""Ray's concurrency group of `answer`."""

BESIDE = "beside"
"""Of what a worker waits for while it works on other things, one at a time."""

STACKS = "stacks"
"""Of `stacks`, which must not wait for an `answer` that does not come."""


class Answering(Protocol):
    """What the class of every actor of the run has, beside other work: `answer` in the concurrency group LIVENESS, and
    `stacks`, from `TellsStacks`."""

    def answer(self) -> ProcessMark:
        """The mark of its process."""

    def stacks(self, pid: int | None) -> str:
        """Of its process and those below it; of `pid`, another one on its machine."""


class TellsStacks:
    """A base of every actor's class: its Python stacks can be asked for while it works."""

    _loop: asyncio.AbstractEventLoop | None = None
    """Where it works, if it works in one."""

    @ray.method(concurrency_group=STACKS)
    def stacks(self, pid: int | None) -> str:
        if pid is not None:
            return stacks_of(pid)
        return all_stacks([self._loop] if self._loop is not None else [])


A = TypeVar("A", bound=Answering)
"""An actor's class."""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Which worker a call went to."""

    role: str
    rank: int
    log: Path

    def __str__(self) -> str:
        return f"{self.role} rank {self.rank}"


class Worker(Generic[A]):
    """One Ray actor of the run, of class A."""

    def __init__(self, name: WorkerName, actor: Any) -> None:
        """actor: Ray's handle. In the event loop on which it is called."""
        self.name, self._actor = name, actor
        self.mark: ProcessMark | None = None
        """Of its process; None until it has answered once."""
        self.heard_s = time.monotonic()
        """When it last answered, or was started, on this process's monotonic clock."""
        self.idle_s = self.heard_s
        """Likewise: since when nothing is asked of it, if nothing is."""
        self.ended = False
        """Ray has said that its process is gone."""
        self._doing: dict[str, float] = {}
        self._told: str | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the reason, for a person, when the process does not answer any more."""

    def __str__(self) -> str:
        return str(self.name)

    @overload
    def ask(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]: ...

    @overload
    def ask(self, method: Callable[Concatenate[A, P], T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...

    def ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the actor's class, given as `Class.method`: the one way to do so, with arguments and result
        that mypy checks. The call is on its way at once; awaiting what is returned raises Ray's errors (failures.call
        translates them)."""
        return getattr(self._actor, method.__name__).remote(*args, **kwargs)

    def stream(
        self, method: Callable[Concatenate[A, P], AsyncIterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[Awaitable[T]]:
        """`ask` for a method that yields: what it yields, as soon as it does."""
        results: AsyncIterator[Awaitable[T]] = getattr(self._actor, method.__name__).remote(*args, **kwargs)
        return results

    async def _ask_mark(self) -> ProcessMark | None:
        """The mark of its process; None when that has ended, which whoever calls it is told by Ray."""
        try:
            return await self.ask(Answering.answer)
        except ray.exceptions.RayError:
            return None

    async def answers(self, *, within_s: float) -> bool:
        """Whether its process answers a question beside its work, or is known to have ended."""
        asked = asyncio.ensure_future(self._ask_mark())
        silent_s = 0.0
        while not asked.done():
            before = time.monotonic()
            await asyncio.wait({asked}, timeout=min(_POLL_S, within_s))
            # A driver that was itself stopped, or busy, has not waited.
            silent_s += min(time.monotonic() - before, 2 * _POLL_S)
            if silent_s >= within_s and not asked.done():
                asked.cancel()
                return False
        if (mark := asked.result()) is not None:
            self.mark, self.heard_s = mark, time.monotonic()
        return True

    def asked_to(self, do: str) -> None:
        """It is at it from now on."""
        self._doing[do] = time.monotonic()

    def has_done(self, what: str) -> None:
        """It has answered."""
        self._doing.pop(what, None)
        self.idle_s = time.monotonic()

    @property
    def busy_with(self) -> Mapping[str, float]:
        """What it was asked to do and has not answered -> since when, on the monotonic clock; the first asked first."""
        return self._doing

    async def tell_stacks(self, peers: Sequence["Worker[Any]"]) -> str:
        """Of its process and those below it, or why there are none. One that cannot run Python is asked by a signal,
        from here or by one of `peers` on its machine. What it told last is kept for when it is killed."""
        if self.lost.done():
            return self._told or "it was given up"
        text = await self._ask_stacks(None)
        if text is None:
            text = await self._stacks_from_outside(peers)
        self._told = text
        return text

    async def _ask_stacks(self, pid: int | None) -> str | None:
        """None where no answer comes."""
        try:
            return await asyncio.wait_for(_awaited(self.ask(Answering.stacks, pid)), STACKS_WAIT_S)
        except TimeoutError:
            return None
        except ray.exceptions.RayError:
            return None if pid is not None else "its process is gone"

    async def _stacks_from_outside(self, peers: Sequence["Worker[Any]"]) -> str:
        if self.mark is None:
            return "its process never answered"
        match self.mark.standing():
            case "dead":
                return "its process is gone"
            case "alive":
                return await asyncio.to_thread(stacks_of, self.mark.pid)
        where = self.mark.boot, self.mark.namespace
        beside = (peer for peer in peers if peer is not self and not peer.lost.done() and peer.mark is not None)
        peer = next((peer for peer in beside if peer.mark and (peer.mark.boot, peer.mark.namespace) == where), None)
        text = None if peer is None else await peer._ask_stacks(self.mark.pid)
        return text or f"it does not answer, and nobody else on {self.mark.host} can be asked for its stacks"

    def give_up(self, reason: str) -> None:
        """Its process does not answer: everyone who waits for it is told, and it is killed, stopped or not."""
        if self.lost.done():
            return
        self.lost.set_result(f"{reason}; {self._describe_process()}")
        if self.mark is not None and self.mark.standing() == "alive":
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.mark.pid, signal.SIGKILL)
        else:
            ray.kill(self._actor)

    def _describe_process(self) -> str:
        if self.mark is None:
            return "its process never answered"
        where = f"its process {self.mark.pid} on {self.mark.host}"
        match self.mark.standing():
            case "dead":
                return f"{where} is gone"
            case "elsewhere":
                return f"{where} is stopped, or that machine cannot be reached"
        state = process_state(self.mark.pid)
        return f"{where} is {state}" + (" but answers nothing" if state.startswith("alive") else "")


class Watch:
    """Asks every worker again and again, for as long as the run lasts, whether its process answers."""

    def __init__(self, workers: Sequence[Worker[Any]], *, silence_s: float) -> None:
        """silence_s: cluster.worker_silence_s; a process that is starting has `_START_TIMEOUT_S` at least."""
        self._silence_s = silence_s
        self._watched: dict[Worker[Any], asyncio.Task[None]] = {}
        self._peers: list[Worker[Any]] = list(workers)
        for worker in workers:
            self._watch(worker)

    def follow(self, worker: Worker[Any]) -> None:
        """This one too; those that are lost or have ended are not watched any more."""
        for gone in [each for each in self._peers if each.lost.done() or each.ended]:
            self._peers.remove(gone)
            self._watched.pop(gone).cancel()
        self._peers.append(worker)
        self._watch(worker)

    def end(self) -> None:
        for task in self._watched.values():
            task.cancel()

    def _watch(self, worker: Worker[Any]) -> None:
        self._watched[worker] = asyncio.create_task(_watch(worker, self._silence_s, self._peers))


async def _watch(worker: Worker[Any], silence_s: float, peers: Sequence[Worker[Any]]) -> None:
    within_s = max(silence_s, _START_TIMEOUT_S)
    while await worker.answers(within_s=within_s):
        if worker.mark is None:
            return  # it died before it had started: the call under way says so
        within_s = silence_s
        await asyncio.sleep(min(_PAUSE_S, silence_s / 4))
    await worker.tell_stacks(peers)  # while there is a process
    worker.give_up(f"has not answered for {within_s:g} s" + ("" if worker.mark is None else _FIELD))


_FIELD = " (cluster.worker_silence_s)"


async def _awaited(reference: Awaitable[T]) -> T:
    """As a coroutine, which Ray's references are not."""
    return await reference
