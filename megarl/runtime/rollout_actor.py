"""A vLLM engine as a Ray actor."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import ray

from megarl.config.run import RunConfig
from megarl.records import PackedRollouts, SampleRequest
from megarl.reshard.session import WeightEndpoint
from megarl.rollout.engine import RolloutEngine
from megarl.rollout.weight_updates import Adoption
from megarl.runtime.leftovers import end_earlier_worker
from megarl.runtime.streams import in_batches
from megarl.runtime.workers import LIVENESS, TellsStacks
from megarl.telemetry.logs import redirect_output, setup_logging
from megarl.telemetry.process_mark import ProcessMark

_log = logging.getLogger(__name__)
_EXIT_GRACE_S = 10.0
_TOGETHER_S = 0.1
"""Responses that end within so long are handed on together."""


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
            shares_gpus=config.cluster.colocate,
        )

    @ray.method(concurrency_group=LIVENESS)
    async def answer(self) -> ProcessMark:
        """That this process runs, and the engine's event loop in it."""
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
        return ProcessMark.of(os.getpid())

    async def setup(self) -> None:
        self._loop = asyncio.get_running_loop()
        for leftover in await asyncio.to_thread(end_earlier_worker):
            _log.warning("removed what the engine that was here before left: %s", leftover.name)
        await self._engine.start()

    async def check(self) -> None:
        await self._engine.check()

    async def connect(self, endpoint: WeightEndpoint) -> None:
        await self._engine.connect(endpoint)

    async def disconnect(self) -> None:
        await self._engine.disconnect()

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

    async def sleep(self) -> list[int] | None:
        return await self._engine.sleep()

    async def wake_weights(self) -> None:
        await self._engine.wake_weights()

    async def wake_cache(self) -> None:
        await self._engine.wake_cache()

    async def shutdown(self) -> None:
        await self._engine.shutdown(grace_s=_EXIT_GRACE_S)
