"""An engine that is lost is replaced while the others go on. Needs no Ray: an actor is what its handle answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.records import PackedRollouts, Rollout, SampleRequest
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineError, EngineLost, EngineStartError, WrongVersionError
from megarl.rollout.weight_updates import Adoption
from megarl.runtime import rollout_actors, workers
from megarl.runtime.failures import EngineBroken, WorkerDied, WorkerFailed
from megarl.runtime.rollout_actors import RayRolloutPool
from megarl.runtime.roster import Roster
from megarl.runtime.workers import Worker, WorkerName
from megarl.telemetry.metrics import to_values
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
        self, monkeypatch: pytest.MonkeyPatch, first: Sequence[Engine], later: Sequence[Engine], **rollout: Any
    ):
        self.started: list[Engine] = []
        self.killed: list[Any] = []
        waiting = [*first, *later]

        def start_worker(name: WorkerName, *_: Any) -> Worker[Any]:
            engine = waiting.pop(0)
            assert engine.index == name.rank
            self.started.append(engine)
            return Worker(name, engine)

        monkeypatch.setattr(rollout_actors, "start_worker", start_worker)
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
        placement: Any = SimpleNamespace(engine=lambda index: {})
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


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def make(*first: Engine, later: Sequence[Engine] = (), **rollout: Any) -> Stage:
        return Stage(monkeypatch, first, later, **rollout)

    monkeypatch.setattr(workers, "STACKS_WAIT_S", 0.2)
    return make


def play(scenario: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(scenario, 60.0)

    return asyncio.run(bounded())


def test_a_dead_engine_is_replaced_while_the_others_go_on(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        dying, heir = Engine(1, generate=gone()), Engine(1)
        at = stage(Engine(0), dying, later=[heir])
        await at.meet()
        with pytest.raises(EngineLost, match=r"^rollout rank 1 died: The actor's process is gone.$"):
            await at.generate()
        # All of the other's and the one that had come, each once.
        assert sorted(at.told) == [0, 1, 2, 4, 5]
        assert await at.pool.restore() == 1
        assert heir.calls == ["setup", "check"]
        assert "shutdown" not in dying.calls  # there is nobody to ask
        assert at.killed == [dying]
        assert [worker._actor for worker in at.roster.workers] == at.pool_handles() == [at.started[0], heir]
        assert await at.pool.restore() == 0
        rollouts = await at.generate()
        assert [tuple(map(int, rollout.response)) for rollout in rollouts] == [
            (seed, int(seed in OF_ENGINE_1)) for seed in range(8)
        ]
        assert heir.asked == OF_ENGINE_1
        await at.pool.close()

    play(scenario())


def test_an_engine_that_says_it_cannot_go_on_is_ended_before_another_starts(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        order: list[str] = []

        async def end() -> None:
            await asyncio.sleep(0.05)
            order.append("ended")

        async def begin() -> None:
            order.append("begun")

        broken = Engine(1, generate=raised(EngineError("engine 1 cannot go on: it hangs")), shutdown=end)
        at = stage(Engine(0), broken, later=[Engine(1, setup=begin)])
        await at.meet()
        with pytest.raises(EngineLost, match=r"^rollout rank 1 raised EngineError: engine 1 cannot go on: it hangs$"):
            await at.generate()
        assert await at.pool.restore() == 1
        assert order == ["ended", "begun"]
        assert at.killed == [broken]
        await at.pool.close()

    play(scenario())


@pytest.mark.parametrize(
    "error", [ValueError("request 3 has a prompt of 0 tokens"), WrongVersionError("engine 1 sampled under 3")]
)
def test_what_a_new_engine_would_do_too_is_not_repaired(error: Exception, stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1, generate=raised(error)))
        await at.meet()
        with pytest.raises(WorkerFailed, match=f"^rollout rank 1 raised {type(error).__name__}: {error}"):
            await at.generate()
        await at.pool.close()

    play(scenario())


def test_without_restarts_the_failure_is_told_as_it_is(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1, generate=gone()), restarts=0)
        await at.meet()
        with pytest.raises(
            WorkerDied, match=r"(?s)^rollout rank 1 died: The actor's process is gone..End of /nowhere:"
        ):
            await at.generate()
        await at.pool.close()

    play(scenario())


def test_a_failed_start_of_the_run_is_not_tried_again(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1, setup=raised(EngineStartError("no memory"))))
        with pytest.raises(EngineBroken, match=r"^rollout rank 1 raised EngineStartError: no memory"):
            await at.meet()
        at = stage(Engine(0), Engine(1, connect=gone()))
        with pytest.raises(WorkerDied, match=r"^rollout rank 1 died"):
            await at.meet()
        await at.pool.close()

    play(scenario())


def test_an_engine_that_does_not_start_again_ends_the_run_with_what_was_tried(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        heirs = [Engine(1, setup=raised(EngineStartError("no memory"))) for _ in range(2)]
        at = stage(Engine(0), Engine(1, generate=gone()), later=heirs)
        await at.meet()
        with pytest.raises(EngineLost):
            await at.generate()
        with pytest.raises(EngineBroken) as caught:
            await at.pool.restore()
        first, *_, last = str(caught.value).splitlines()
        assert first == "rollout rank 1 raised EngineStartError: no memory"
        assert last == "It had been started again 2 times, and it failed twice in a row before it had answered anything"
        await at.pool.close()

    play(scenario())


def test_a_configuration_that_no_engine_takes_is_told_at_once(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1, generate=gone()), later=[Engine(1, setup=raised(ConfigError("no such name")))])
        await at.meet()
        with pytest.raises(EngineLost):
            await at.generate()
        with pytest.raises(ConfigError, match=r"^no such name$"):
            await at.pool.restore()
        await at.pool.close()

    play(scenario())


def test_an_engine_that_died_unheard_is_found(stage: Callable[..., Stage]) -> None:
    """A publication fails at the policy, which does not know why."""

    async def scenario() -> None:
        dead = Engine(0, check=raised(EngineError("engine 0 cannot go on: its process died")))
        at = stage(dead, Engine(1), later=[Engine(0)])
        await at.meet()
        assert await at.pool.restore() == 1
        assert at.pool_handles() == [at.started[2], at.started[1]]
        await at.pool.close()

    play(scenario())


def test_both_engines_may_be_lost(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0, generate=gone()), Engine(1, generate=gone()), later=[Engine(0), Engine(1)])
        await at.meet()
        with pytest.raises(EngineLost, match=r"^rollout rank 0 died: .*; rollout rank 1 died: "):
            await at.generate()
        assert sorted(at.told) == [0, 2]
        assert await at.pool.restore() == 2
        await at.pool.close()

    play(scenario())


@pytest.mark.parametrize("fault", [gone(), raised(TransportError("engine 0 worker 0: it did not come whole"))])
def test_the_others_are_done_when_a_publication_fails(fault: Exception, stage: Callable[..., Stage]) -> None:
    """Else they would be connected anew while they install."""

    async def scenario() -> None:
        done: list[str] = []

        async def install() -> None:
            await asyncio.sleep(0.1)
            done.append("installed")

        at = stage(Engine(0, adopt_weights=fault), Engine(1, adopt_weights=install), later=[Engine(0)])
        await at.meet()
        with pytest.raises((EngineLost, TransportError), match=r"^rollout rank 0"):
            await at.pool.adopt_weights(3)
        assert done == ["installed"]
        assert at.pool.policy_version == 0
        await at.pool.restore()
        assert to_values(await at.pool.adopt_weights(3))["timing_s/publish_drain"] == 1
        assert at.pool.policy_version == 3
        await at.pool.close()

    play(scenario())


def test_a_lost_engine_is_the_cause_of_a_version_that_did_not_come_whole(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        stalled = raised(TransportError("engine 0 worker 0: a peer is gone"))
        at = stage(Engine(0, adopt_weights=stalled), Engine(1, adopt_weights=gone()), later=[Engine(1)])
        await at.meet()
        with pytest.raises(EngineLost, match=r"^rollout rank 1 died"):
            await at.pool.adopt_weights(3)
        await at.pool.close()

    play(scenario())


def test_a_run_that_ends_waits_for_no_replacement(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        async def start() -> None:
            await asyncio.sleep(600.0)

        heir = Engine(1, setup=start)
        at = stage(Engine(0), Engine(1, generate=gone()), later=[heir])
        await at.meet()
        with pytest.raises(EngineLost):
            await at.generate()
        await asyncio.sleep(0.1)
        await at.pool.close()
        assert heir.calls == ["setup", "shutdown"]

    play(scenario())
