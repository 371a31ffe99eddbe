"""A pool of engines whose actors are what their handles answer: no Ray, no vLLM."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from megarl.config.run import RunConfig
from megarl.records import PackedRollouts, Rollout, SampleRequest
from megarl.rollout.weight_updates import Adoption
from megarl.runtime import engine_starts
from megarl.runtime.rollout_actors import RayRolloutPool
from megarl.runtime.roster import Roster
from megarl.runtime.workers import Worker, WorkerName
from megarl.telemetry.process_mark import ProcessMark

REQUESTS = [SampleRequest(prompt=(index // 2,), seed=index) for index in range(8)]
"""Prompts 0 and 2 go to engine 0, 1 and 3 to engine 1: requests 2, 3, 6 and 7."""
OF_ENGINE_1 = [2, 3, 6, 7]
Fault = BaseException | Callable[[], Coroutine[Any, Any, None]]


def gone() -> Exception:
    return ray.exceptions.RayActorError(error_msg="The actor's process is gone.")


def raised(error: Exception) -> Exception:
    return ray.exceptions.RayTaskError("work", "traceback", error)


class Engine:
    """A handle of an actor. `faults`: what its method of that name ends with, once; "generate" after one answer."""

    def __init__(self, index: int, **faults: Fault) -> None:
        self.index, self.faults = index, faults
        self.calls: list[str] = []
        self.asked: list[int] = []

    def __getattr__(self, method: str) -> Any:
        if method == "generate":
            return SimpleNamespace(remote=self._generate)
        return SimpleNamespace(remote=lambda *arguments, **_: self._answer(method, *arguments))

    async def _answer(self, method: str, *_: Any) -> Any:
        if method not in ("answer", "stacks"):
            self.calls.append(method)
        await self._fail(method)
        if method == "answer":
            return ProcessMark("here", "another boot", "pid:[1]", self.index, 1)
        return Adoption(drain_s=self.index, install_s=0.0, resume_s=0.0) if method == "adopt_weights" else None

    async def _generate(self, requests: Sequence[SampleRequest]) -> AsyncIterator[Any]:
        self.calls.append("generate")
        for position, request in enumerate(requests):
            self.asked.append(request.seed)
            rollout = Rollout(
                prompt=request.prompt,
                response=(request.seed, self.index),
                behavior_logp=(-1.0, -1.0),
                stop_reason="stop",
                policy_version=0,
            )
            if position:
                await self._fail("generate")
            yield asyncio.sleep(0.01, result=([position], PackedRollouts.of([rollout])))

    async def _fail(self, method: str) -> None:
        fault = self.faults.pop(method, None)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            await fault()


class Stage:
    """A pool of two engines, and all that were ever started for it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        first: Sequence[Engine],
        later: Sequence[Engine],
        keeper: Any = None,
        **rollout: Any,
    ):
        self.started: list[Engine] = []
        self.killed: list[Any] = []
        waiting = [*first, *later]

        def start_worker(name: WorkerName, *_: Any) -> Worker[Any]:
            engine = waiting.pop(0)
            assert engine.index == name.rank
            self.started.append(engine)
            return Worker(name, engine)

        monkeypatch.setattr(engine_starts, "start_worker", start_worker)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        config = RunConfig.model_validate(
            {
                "name": "pool",
                "model": {"path": "unused"},
                "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
                "reward": {"verifier": {"kind": "reasoning_gym"}},
                "rollout": {"engines": 2, **rollout},
            }
        )
        self.roster, directory = Roster(), SimpleNamespace(log_path=lambda role, rank: Path("/nowhere"), logs=Path("/"))
        placement: Any = SimpleNamespace(engine=lambda index: {}, keeper=keeper)
        self.pool = RayRolloutPool(config, directory, placement, self.roster, stop_token_ids=())  # type: ignore[arg-type]
        self.told: list[int] = []

    async def meet(self) -> None:
        await self.pool.setup()
        await self.pool.connect(None)  # type: ignore[arg-type]

    def pool_handles(self) -> list[Any]:
        """Of the engines that are asked now."""
        return [worker._actor for worker in self.pool._workers]

    async def generate(self) -> list[Rollout]:
        def arrived(indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
            assert [int(rollout.response[0]) for rollout in rollouts] == list(indexes)
            self.told += indexes

        return await self.pool.generate(REQUESTS, arrived)


def play(scenario: Coroutine[Any, Any, Any]) -> Any:
    """What it returns; it ends."""

    async def bounded() -> Any:
        return await asyncio.wait_for(scenario, 60.0)

    return asyncio.run(bounded())
