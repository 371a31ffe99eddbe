"""The vLLM engines as Ray actors, and the pool of them as the loop sees it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megarl.config.run import RunConfig
from megarl.records import Rollout, SampleRequest
from megarl.reshard.session import WeightEndpoint
from megarl.rollout.engine import Adoption, RolloutEngine
from megarl.runtime.cluster import Placement, start_actor
from megarl.runtime.failures import WorkerName, call
from megarl.telemetry.logs import redirect_output, setup_logging
from megarl.telemetry.metrics import Max, Metrics
from megarl.telemetry.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_EXIT_GRACE_S = 10.0
_CLOSE_TIMEOUT_S = 45.0


class RolloutActor:
    """Shell of one `RolloutEngine`: cheap to make, heavy in `setup`, no logic of its own."""

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

    async def setup(self) -> None:
        await self._engine.start()

    async def connect(self, endpoint: WeightEndpoint) -> None:
        await self._engine.connect(endpoint)

    async def generate(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        return await self._engine.generate(requests)

    async def receive_weights(self, version: int) -> None:
        await self._engine.receive_weights(version)

    async def adopt_weights(self, version: int) -> Adoption:
        return await self._engine.adopt_weights(version)

    async def shutdown(self) -> None:
        await self._engine.shutdown(grace_s=_EXIT_GRACE_S)


class RayRolloutPool:
    """All engines as one; implements the loop's `RolloutPool`."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, placement: Placement, *, stop_token_ids: tuple[int, ...]
    ) -> None:
        indexes = range(config.rollout.engines)
        self._names = [WorkerName("rollout", index, directory.log_path("rollout", index)) for index in indexes]
        self._actors = [
            start_actor(RolloutActor, placement.engine(index), config, index, stop_token_ids, directory.logs)
            for index in indexes
        ]

    async def setup(self) -> None:
        """Start every engine."""
        await self._all("setup")

    async def connect(self, endpoint: WeightEndpoint) -> None:
        """Meet the policy, whose ranks join the session meanwhile."""
        await self._all("connect", endpoint)

    async def generate(self, requests: Sequence[SampleRequest], advance: Callable[[int], None]) -> list[Rollout]:
        """Samples of one prompt go to one engine, which shares their prefix; prompts are dealt out in turn."""
        groups = _group_by_prompt(requests)

        async def sample(position: int, indexes: Sequence[int]) -> list[Rollout]:
            engine = position % len(self._actors)
            reference = self._actors[engine].generate.remote([requests[index] for index in indexes])
            rollouts = await call(self._names[engine], reference)
            advance(len(indexes))
            return rollouts

        results = await asyncio.gather(*(sample(position, indexes) for position, indexes in enumerate(groups)))
        by_index = {
            index: rollout
            for indexes, rollouts in zip(groups, results, strict=True)
            for index, rollout in zip(indexes, rollouts, strict=True)
        }
        return [by_index[index] for index in range(len(requests))]

    async def receive_weights(self, version: int) -> None:
        await self._all("receive_weights", version)

    async def adopt_weights(self, version: int) -> Metrics:
        return merge_adoptions(await self._all("adopt_weights", version))

    async def close(self) -> None:
        """End the engines and their processes, whatever they are doing; an engine that cannot is left to Ray.

        Never raises: a run that ends because something failed tells that failure.
        """
        pending = {
            asyncio.ensure_future(call(name, actor.shutdown.remote())): name
            for name, actor in zip(self._names, self._actors, strict=True)
        }
        await asyncio.wait(pending, timeout=_CLOSE_TIMEOUT_S)
        for task, name in pending.items():
            if not task.done():
                task.cancel()
                _log.warning("%s did not end within %g s", name, _CLOSE_TIMEOUT_S)
            elif task.exception() is not None:
                _log.info("%s had ended before it was closed", name)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        references = [getattr(actor, method).remote(*args) for actor in self._actors]
        return await asyncio.gather(*(call(name, ref) for name, ref in zip(self._names, references, strict=True)))


def merge_adoptions(adoptions: Sequence[Adoption]) -> Metrics:
    """Metrics of one change of weights: seconds of the slowest engine."""
    return {
        "timing_s/publish_drain": Max(max(adoption.drain_s for adoption in adoptions)),
        "timing_s/publish_install": Max(max(adoption.install_s for adoption in adoptions)),
        "timing_s/publish_resume": Max(max(adoption.resume_s for adoption in adoptions)),
    }


def _group_by_prompt(requests: Sequence[SampleRequest]) -> list[list[int]]:
    """Indexes of the requests that share a prompt, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.prompt, []).append(index)
    return list(groups.values())
