"""The pool of vLLM engines as the loop sees it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import ray
import ray.exceptions

from megarl.config.run import RunConfig
from megarl.records import Rollout, SampleRequest
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineLost
from megarl.rollout.weight_updates import worker_call_limit_s
from megarl.runtime.cluster import Placement
from megarl.runtime.dealing import Deal, deal_prompts, restore_order
from megarl.runtime.engine_starts import EngineStarts, find_kept_engines
from megarl.runtime.failures import EngineBroken, Limit, WorkerDied, WorkerFailed, WorkerStuck, call, gather_all
from megarl.runtime.merging import merge_adoptions
from megarl.runtime.restarts import Restarts
from megarl.runtime.rollout_actor import RolloutActor
from megarl.runtime.roster import Roster
from megarl.runtime.shared_gpus import GpuPlace
from megarl.runtime.workers import Watch, Worker
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.run_directory import RunDirectory

T = TypeVar("T")

_log = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 45.0
"""Also for an engine that is replaced; what does not end by then is killed."""
_MARGIN_S = 120.0
"""An engine keeps its own limits, and says what it waited for; the call to it waits so much longer."""


class RayRolloutPool:
    """All engines as one; implements the loop's `RolloutPool`.

    An engine that died or hangs is replaced in the background: its processes are ended, and a new one is started in its
    place. Whoever asked it is told by EngineLost, and `restore` returns when all engines run. While the policy has the
    GPUs that engines share (from `sleep` on until they are woken or restored) no engine is started on them.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        placement: Placement,
        roster: Roster,
        *,
        stop_token_ids: tuple[int, ...],
        gpus: Sequence[GpuPlace] = (),
    ) -> None:
        """gpus: of the policy ranks, where engines share them."""
        self._config, self._roster = config, roster
        self._starts = EngineStarts(config, directory, placement, stop_token_ids=stop_token_ids, gpus=gpus)
        self._workers = [roster.add(worker) for worker in self._starts.first()]
        self._watch = Watch(self._workers, silence_s=config.cluster.worker_silence_s)
        self._restarts = Restarts(config.rollout.restarts)
        self._replacing: dict[int, asyncio.Task[None]] = {}
        """By engine, its replacement under way, or done since the last `restore`."""
        unlike = self._starts.found or config.rollout.starts_without_weights
        self._unlike_policy: set[int] = set(range(config.rollout.engines) if unlike else ())
        """Engines that have adopted nothing since they were started: again, so that they hold what the run began with,
        or without weights; or that another run had, and hold its weights."""
        self._ended: dict[int, asyncio.Event] = {}
        """Of engines that are replaced: that the processes of the one that was lost are gone."""
        self._have_room = asyncio.Event()
        """Engines may be started: the policy does not have the GPUs that they share."""
        self._have_room.set()
        self._met = False
        """The policy, once: what fails before ends the run as a failed start."""
        self.policy_version = 0

    async def setup(self) -> None:
        """Start every engine; those of another run answer."""
        if self._starts.found:
            await self._check()
            return
        asked = [worker.ask(RolloutActor.setup) for worker in self._workers]
        await self._all(asked, doing="start", limit=self._start_limit)

    @property
    def has_other_weights(self) -> bool:
        """Whether engines have no weights of this run, and sample nothing before a publication."""
        return bool(self._unlike_policy)

    async def _check(self) -> None:
        asked = [worker.ask(RolloutActor.check) for worker in self._workers]
        await self._all(asked, doing="say whether it can go on", limit=self._weights_limit)

    @property
    def _start_limit(self) -> Limit:
        return Limit(self._config.rollout.start_timeout_s + _MARGIN_S, "above rollout.start_timeout_s")

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """Meet the policy, whose ranks join the session meanwhile. EngineLost as for `generate`."""
        asked = [worker.ask(RolloutActor.connect, endpoint) for worker in self._workers]
        await self._all(asked, doing="meet the policy", limit=self._weights_limit)
        self._met = True

    @property
    def _weights_limit(self) -> Limit:
        limit_s = 2 * worker_call_limit_s(self._config.rollout) + self._config.rollout.stall_timeout_s + _MARGIN_S
        return Limit(limit_s, "above rollout.publish.timeout_s and rollout.stall_timeout_s")

    async def generate(
        self, requests: Sequence[SampleRequest], arrived: Callable[[Sequence[int], Sequence[Rollout]], None]
    ) -> list[Rollout]:
        """As `deal_prompts` deals them; `arrived` is told of each when it has come, of several at a time."""
        if self._unlike_policy:
            raise RuntimeError(f"engines {sorted(self._unlike_policy)} have adopted no weights since they were started")
        deals = deal_prompts(requests, engines=len(self._workers))

        async def sample(deal: Deal) -> list[Rollout]:
            worker = self._workers[deal.engine]
            batches = worker.stream(RolloutActor.generate, [requests[index] for index in deal.indexes])
            rollouts: dict[int, Rollout] = {}
            while (batch := await self._call(worker, _next_of(batches), doing="sample", limit=None)) is not None:
                self._restarts.answered(deal.engine)
                positions, packed = batch
                indexes = [deal.indexes[position] for position in positions]
                come = dict(zip(indexes, packed.unpack(), strict=True))
                arrived(indexes, list(come.values()))
                rollouts |= come
            return [rollouts[index] for index in deal.indexes]

        return restore_order(deals, await gather_all(map(sample, deals)))

    async def receive_weights(self, version: int) -> None:
        asked = [worker.ask(RolloutActor.receive_weights, version) for worker in self._workers]
        await self._all(asked, doing="begin to receive weights", limit=self._weights_limit)

    async def adopt_weights(self, version: int) -> Metrics:
        asked = [worker.ask(RolloutActor.adopt_weights, version) for worker in self._workers]
        adoptions = await self._all(asked, doing="adopt weights", limit=self._weights_limit)
        self.policy_version = version
        self._unlike_policy.clear()
        return merge_adoptions(adoptions)

    async def sleep(self) -> list[list[int] | None]:
        """Every engine's memory is given back: of one that is lost meanwhile because its processes have ended. By
        engine, the bytes in use afterwards on its workers' GPUs; None of a lost one, and on a CPU."""
        if self._have_room.is_set():  # else they wait for it
            await asyncio.gather(*self._replacing.values())
        self._have_room.clear()
        return await gather_all(map(self._put_to_sleep, list(self._workers)))

    async def _put_to_sleep(self, worker: Worker[RolloutActor]) -> list[int] | None:
        try:
            asked = worker.ask(RolloutActor.sleep)
            return await self._call(worker, asked, doing="give its memory back", limit=self._weights_limit)
        except EngineLost as lost:
            _log.warning("%s. It is started again when the policy has given the GPUs back", lost)
            await self._ended[worker.name.rank].wait()
            return None

    async def wake_weights(self) -> None:
        """Every engine has memory for the weights that the policy is about to publish."""
        self._have_room.set()
        asked = [worker.ask(RolloutActor.wake_weights) for worker in self._workers]
        await self._all(asked, doing="take memory for weights", limit=self._weights_limit)

    async def wake_cache(self) -> None:
        """Every engine, which has adopted weights, may sample."""
        asked = [worker.ask(RolloutActor.wake_cache) for worker in self._workers]
        await self._all(asked, doing="take memory for its cache", limit=self._weights_limit)

    async def restore(self) -> int:
        """Return when every engine runs and answers; how many were started again since the last call.

        Raises:
            WorkerFailed: an engine cannot be started again, or not any more.
        """
        restarted = 0
        self._starts.doubt("a publication had to be repeated, or an engine was lost")
        self._have_room.set()
        while True:
            while self._replacing:
                await asyncio.gather(*self._replacing.values())
                restarted += sum(task.done() for task in self._replacing.values())
                self._replacing = {index: task for index, task in self._replacing.items() if not task.done()}
            try:
                await self._check()
            except EngineLost:
                continue
            return restarted

    async def leave(self) -> None:
        """The run has ended well: where engines may outlive it, and answer, the next one finds them, without anything
        of this one's policy. Else they are left to `close`."""
        if not self._starts.stay:
            return
        try:
            asked = [worker.ask(RolloutActor.disconnect) for worker in self._workers]
            await self._all(asked, doing="leave the policy", limit=self._weights_limit)
        except (EngineLost, WorkerFailed, TransportError) as failure:
            self._starts.doubt(str(failure))
        if self._starts.leave():
            self._watch.end()
            self._workers = []

    async def close(self) -> None:
        """End the engines that the run has not left to another, and their processes, whatever they are doing; an engine
        that cannot is left to Ray.

        Never raises: a run that ends because something failed tells that failure.
        """
        self._starts.end_logs()
        self._watch.end()
        for replacing in self._replacing.values():
            replacing.cancel()
        await asyncio.gather(*self._replacing.values(), return_exceptions=True)
        await asyncio.gather(*map(_shut_down, self._workers))

    async def _all(self, asked: Sequence[Awaitable[T]], *, doing: str, limit: Limit) -> list[T]:
        """What every engine was asked for, in their order; failures as of `gather_all`."""
        pairs = zip(self._workers, asked, strict=True)
        return await gather_all(self._call(worker, reply, doing=doing, limit=limit) for worker, reply in pairs)

    async def _call(self, worker: Worker[RolloutActor], reply: Awaitable[T], *, doing: str, limit: Limit | None) -> T:
        """`failures.call`; EngineLost where the engine cannot go on and is replaced."""
        try:
            return await call(worker, reply, doing=doing, limit=limit)
        except (WorkerDied, WorkerStuck, EngineBroken) as failure:
            if not self._met:
                raise
            self._replace(worker, failure)
            raise EngineLost(_first_line(failure)) from failure

    def _replace(self, worker: Worker[RolloutActor], failure: WorkerFailed) -> None:
        """Begin to replace an engine, once however many calls of it failed. Raises `failure` where it is not to be."""
        index = worker.name.rank
        if self._workers[index] is worker and index not in self._replacing:
            self._count(worker, failure)
            self._starts.doubt(f"{worker} was lost")
            self._unlike_policy.add(index)
            self._ended[index] = asyncio.Event()
            self._replacing[index] = asyncio.create_task(self._start_again(worker))

    def _count(self, worker: Worker[RolloutActor], failure: WorkerFailed) -> None:
        which = self._restarts.spend(worker.name.rank, failure)
        _log.warning("%s is started again (%s) while the others go on: %s", worker, which, _first_line(failure))
        _log.debug("%s", failure)

    async def _start_again(self, lost: Worker[RolloutActor]) -> None:
        """Another engine in its place, which has started; tried again as often as an engine may be lost."""
        index = lost.name.rank
        if lost.lost.done():  # told before it was killed
            _log.debug("%s: stacks of when it was given up:\n%s", lost, await lost.tell_stacks(()))
        while True:
            await _end(lost)
            self._ended[index].set()
            await self._have_room.wait()
            worker = self._workers[index] = self._roster.add(self._starts.start(index))
            self._watch.follow(worker)
            try:
                await call(worker, worker.ask(RolloutActor.setup), doing="start again", limit=self._start_limit)
                return
            except (WorkerDied, WorkerStuck, EngineBroken) as failure:
                self._count(worker, failure)
                lost = worker


async def end_kept_engines(count: int) -> None:
    """In a keeper, before its Ray ends: so many engines end in order, in set time, whatever they are doing. Never
    raises."""
    await asyncio.gather(*map(_shut_down, find_kept_engines(count)))


async def _next_of(batches: AsyncIterator[Awaitable[T]]) -> T | None:
    """What comes next; None at the end."""
    reply = await anext(batches, None)
    return None if reply is None else await reply


async def _end(worker: Worker[RolloutActor]) -> None:
    """An engine that was lost: its processes end, or are killed, here or by the one that is started in its place."""
    await _shut_down(worker)
    worker.give_up("was replaced")


async def _shut_down(worker: Worker[RolloutActor]) -> None:
    """End the engine's processes, if its actor still can, in set time."""
    if worker.lost.done() or worker.ended:
        return  # killed, or gone
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await worker.ask(RolloutActor.shutdown)
    except TimeoutError:
        _log.warning("%s did not end within %g s", worker, _CLOSE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        _log.info("%s had ended before it was closed: %s", worker, error)


def _first_line(failure: WorkerFailed) -> str:
    return str(failure).partition("\n")[0]
