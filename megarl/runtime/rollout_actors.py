"""The vLLM engines as Ray actors, and the pool of them as the loop sees it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray
import ray.exceptions

from megarl.config.run import RunConfig
from megarl.records import PackedRollouts, Rollout, SampleRequest
from megarl.reshard.session import WeightEndpoint
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.weight_updates import Adoption, worker_call_limit_s
from megarl.runtime.cluster import Placement, start_worker
from megarl.runtime.dealing import Deal, deal_prompts, restore_order
from megarl.runtime.failures import Limit, call
from megarl.runtime.merging import merge_adoptions
from megarl.runtime.roster import Roster
from megarl.runtime.streams import in_batches
from megarl.runtime.workers import LIVENESS, TellsStacks, Watch, Worker, WorkerName
from megarl.telemetry.logs import redirect_output, setup_logging
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.process_mark import ProcessMark
from megarl.telemetry.run_directory import RunDirectory

T = TypeVar("T")

_log = logging.getLogger(__name__)
_EXIT_GRACE_S = 10.0
_CLOSE_TIMEOUT_S = 45.0
_TOGETHER_S = 0.1
"""Responses that end within so long are handed on together."""
_MARGIN_S = 120.0
"""An engine keeps its own limits, and says what it waited for; the call to it waits so much longer."""


class RolloutActor(TellsStacks):
    """Shell of one `RolloutEngine`: cheap to make, heavy in `setup`, no logic of its own.

    `answer` has an event loop of its own, so that it does not queue behind the requests that Ray holds back; everything
    else shares one other.
    """

    def __init__(self, config: RunConfig, index: int, stop_token_ids: tuple[int, ...], logs: Path) -> None:
        redirect_output(logs / f"rollout-{index}.log")
        setup_logging("rollout", index, logs)
        self._engine = RolloutEngine(
            config=config.rollout,
            model=config.model,
            index=index,
            stop_token_ids=stop_token_ids,
            log_path=logs / f"rollout-{index}.log",
        )

    @ray.method(concurrency_group=LIVENESS)
    async def answer(self) -> ProcessMark:
        """That this process runs, and the engine's event loop in it."""
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
        return ProcessMark.of(os.getpid())

    async def setup(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._engine.start()

    async def connect(self, endpoint: WeightEndpoint) -> None:
        await self._engine.connect(endpoint)

    @ray.method(num_returns="streaming")
    async def generate(self, requests: Sequence[SampleRequest]) -> AsyncIterator[tuple[list[int], PackedRollouts]]:
        """Responses as they come, after their positions among the requests."""
        async for batch in in_batches(partial(self._engine.generate, requests), every_s=_TOGETHER_S):
            positions, rollouts = zip(*batch, strict=True)
            yield list(positions), PackedRollouts.of(rollouts)

    async def receive_weights(self, version: int) -> None:
        await self._engine.receive_weights(version)

    async def adopt_weights(self, version: int) -> Adoption:
        return await self._engine.adopt_weights(version)

    async def shutdown(self) -> None:
        await self._engine.shutdown(grace_s=_EXIT_GRACE_S)


class RayRolloutPool:
    """All engines as one; implements the loop's `RolloutPool`."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        placement: Placement,
        roster: Roster,
        *,
        stop_token_ids: tuple[int, ...],
    ) -> None:
        def start(index: int) -> Worker[RolloutActor]:
            name = WorkerName("rollout", index, directory.log_path("rollout", index))
            options = placement.engine(index)
            return roster.add(
                start_worker(name, RolloutActor, options, {}, config, index, stop_token_ids, directory.logs)
            )

        self._config = config
        self._workers = [start(index) for index in range(config.rollout.engines)]
        self._watch = Watch(self._workers, silence_s=config.cluster.worker_silence_s)

    async def setup(self) -> None:
        """Start every engine."""
        limit = Limit(self._config.rollout.start_timeout_s + _MARGIN_S, "above rollout.start_timeout_s")
        await self._all([worker.ask(RolloutActor.setup) for worker in self._workers], doing="start", limit=limit)

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """Meet the policy, whose ranks join the session meanwhile."""
        asked = [worker.ask(RolloutActor.connect, endpoint) for worker in self._workers]
        await self._all(asked, doing="meet the policy", limit=self._weights_limit)

    @property
    def _weights_limit(self) -> Limit:
        limit_s = 2 * worker_call_limit_s(self._config.rollout) + self._config.rollout.stall_timeout_s + _MARGIN_S
        return Limit(limit_s, "above rollout.publish.timeout_s and rollout.stall_timeout_s")

    async def generate(
        self, requests: Sequence[SampleRequest], arrived: Callable[[Sequence[int], Sequence[Rollout]], None]
    ) -> list[Rollout]:
        """As `deal_prompts` deals them; `arrived` is told of each when it has come, of several at a time."""
        deals = deal_prompts(requests, engines=len(self._workers))

        async def sample(deal: Deal) -> list[Rollout]:
            worker = self._workers[deal.engine]
            batches = worker.stream(RolloutActor.generate, [requests[index] for index in deal.indexes])
            rollouts: dict[int, Rollout] = {}
            while (batch := await call(worker, _next_of(batches), doing="sample", limit=None)) is not None:
                positions, packed = batch
                indexes = [deal.indexes[position] for position in positions]
                come = dict(zip(indexes, packed.unpack(), strict=True))
                arrived(indexes, list(come.values()))
                rollouts |= come
            return [rollouts[index] for index in deal.indexes]

        return restore_order(deals, await asyncio.gather(*map(sample, deals)))

    async def receive_weights(self, version: int) -> None:
        asked = [worker.ask(RolloutActor.receive_weights, version) for worker in self._workers]
        await self._all(asked, doing="begin to receive weights", limit=self._weights_limit)

    async def adopt_weights(self, version: int) -> Metrics:
        asked = [worker.ask(RolloutActor.adopt_weights, version) for worker in self._workers]
        return merge_adoptions(await self._all(asked, doing="adopt weights", limit=self._weights_limit))

    async def close(self) -> None:
        """End the engines and their processes, whatever they are doing; an engine that cannot is left to Ray.

        Never raises: a run that ends because something failed tells that failure.
        """
        self._watch.end()
        asked = [asyncio.ensure_future(_shut_down(worker)) for worker in self._workers]
        done, _ = await asyncio.wait(asked, timeout=_CLOSE_TIMEOUT_S)
        for worker, task in zip(self._workers, asked, strict=True):
            if task not in done:
                task.cancel()
                _log.warning("%s did not end within %g s", worker, _CLOSE_TIMEOUT_S)

    async def _all(self, asked: Sequence[Awaitable[T]], *, doing: str, limit: Limit) -> list[T]:
        """What every engine was asked for, in their order; the first failure is raised at once."""
        pairs = zip(self._workers, asked, strict=True)
        return await asyncio.gather(*(call(worker, reply, doing=doing, limit=limit) for worker, reply in pairs))


async def _next_of(batches: AsyncIterator[Awaitable[T]]) -> T | None:
    """What comes next; None at the end."""
    reply = await anext(batches, None)
    return None if reply is None else await reply


async def _shut_down(worker: Worker[RolloutActor]) -> None:
    if worker.lost.done():
        return  # killed
    try:
        await worker.ask(RolloutActor.shutdown)
    except ray.exceptions.RayError as error:
        _log.info("%s had ended before it was closed: %s", worker, error)
