"""An engine that is lost is replaced while the others go on. Needs no Ray: an actor is what its handle answers."""

import asyncio
from collections.abc import Callable

import pytest

from megarl.config.base import ConfigError
from megarl.reshard.signals import TransportError
from megarl.rollout.failures import EngineError, EngineLost, EngineStartError, WrongVersionError
from megarl.runtime import workers
from megarl.runtime.failures import EngineBroken, WorkerDied, WorkerFailed
from megarl.telemetry.metrics import to_values
from tests.runtime.simulated_engines import OF_ENGINE_1, Engine, Stage, gone, play, raised


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
        with pytest.raises(RuntimeError, match=r"^engines \[1\] have adopted no weights since they were started$"):
            await at.generate()
        await at.pool.adopt_weights(0)
        at.told.clear()
        rollouts = await at.generate()
        assert [tuple(map(int, rollout.response)) for rollout in rollouts] == [
            (seed, int(seed in OF_ENGINE_1)) for seed in range(8)
        ]
        assert heir.asked == OF_ENGINE_1
        assert sorted(at.told) == list(range(8))
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


def test_an_engine_of_which_two_calls_fail_is_replaced_once(stage: Callable[..., Stage]) -> None:
    """Also where the second fails when the other one is there."""

    async def scenario() -> None:
        async def fail_late() -> None:
            await asyncio.sleep(0.5)
            raise gone()

        at = stage(Engine(0), Engine(1, receive_weights=gone(), adopt_weights=fail_late), later=[Engine(1)])
        await at.meet()
        late = asyncio.ensure_future(at.pool.adopt_weights(3))
        with pytest.raises(EngineLost):
            await at.pool.receive_weights(3)
        assert await at.pool.restore() == 1
        with pytest.raises(EngineLost):
            await late
        assert await at.pool.restore() == 0
        assert len(at.started) == 3
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


def test_an_engine_that_hangs_while_it_starts_again_is_given_up(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_START_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        async def hang() -> None:
            await asyncio.sleep(600.0)

        hanging = Engine(1, answer=hang, setup=hang)
        at = stage(Engine(0), Engine(1, generate=gone()), later=[hanging, Engine(1)])
        await at.meet()
        at.pool._watch._silence_s = 0.3  # of those that come
        with pytest.raises(EngineLost):
            await at.generate()
        assert await at.pool.restore() == 1
        assert at.killed[1:] == [hanging]
        assert at.pool_handles() == [at.started[0], at.started[3]]
        await at.pool.close()

    play(scenario())
