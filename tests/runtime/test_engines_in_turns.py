"""Engines that share the policy's GPUs: which GPUs a process sees, and that none is started while the policy has them.
Needs no Ray: an actor is what its handle answers."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from megarl.planning.placement import PlacementPlan
from megarl.planning.resources import Workers
from megarl.rollout.failures import EngineLost
from megarl.runtime import shared_gpus
from megarl.runtime.cluster import Placement
from megarl.runtime.failures import WorkerDied
from megarl.runtime.shared_gpus import GpuPlace, find_own_gpu, visible_gpus
from tests.runtime.simulated_engines import Engine, Stage, gone, play

FOUR = [GpuPlace("a", "2"), GpuPlace("a", "10"), GpuPlace("a", "0"), GpuPlace("b", "0")]


@pytest.mark.parametrize(
    ("ranks", "visible"), [([0], "2,0,10"), ([1], "10,0,2"), ([1, 2], "10,0,2"), ([0, 1, 2], "2,10,0"), ([3], "0")]
)
def test_own_gpus_come_first_then_the_runs_others_of_the_node(ranks: list[int], visible: str) -> None:
    assert visible_gpus(FOUR, ranks) == visible


def test_gpus_that_are_named_by_uuid_and_those_of_two_nodes() -> None:
    places = [GpuPlace("a", "GPU-9"), GpuPlace("a", "GPU-1")]
    assert visible_gpus(places, [0]) == "GPU-9,GPU-1"
    with pytest.raises(ValueError, match=r"the GPUs of policy ranks \[2, 3\] lie on 2 nodes"):
        visible_gpus(FOUR, [2, 3])


@pytest.mark.parametrize("found", [[], ["0", "1"]])
def test_a_rank_without_a_gpu_of_its_own_is_told(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": found}, get_node_id=lambda: "a")
    monkeypatch.setattr(shared_gpus, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    with pytest.raises(RuntimeError, match="expected one GPU of Ray for a policy rank that shares it, found"):
        find_own_gpu()
    context.get_accelerator_ids = lambda: {"GPU": ["3"]}
    assert find_own_gpu() == GpuPlace("a", "3")


def test_ray_gives_a_half_of_the_rank_whose_gpu_is_the_first() -> None:
    sharing = Workers(ranks=4, tensor=2, engines=2, engine_tensor=2, on_gpu=True, shared=True)
    plan = PlacementPlan((0,) * 4, (0, 0), ((0, 1), (2, 3)))
    placement = Placement(None, sharing, plan)  # type: ignore[arg-type]
    for options, bundle in ((placement.policy_rank(3), 3), (placement.engine(1), 2)):
        assert (options["num_cpus"], options["num_gpus"]) == (1.0, 0.5)
        assert options["scheduling_strategy"].placement_group_bundle_index == bundle
    assert placement.shares_gpus
    apart = Workers(ranks=4, tensor=2, engines=2, engine_tensor=2, on_gpu=True)
    own = Placement(None, apart, PlacementPlan((0,) * 4, (0, 0)))  # type: ignore[arg-type]
    engine = own.engine(1)
    assert (engine["num_gpus"], engine["scheduling_strategy"].placement_group_bundle_index) == (2.0, 5)
    assert not own.shares_gpus


def test_a_turn_asks_every_engine(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1))
        await at.meet()
        assert await at.pool.sleep() == [None, None]
        await at.pool.wake_weights()
        await at.pool.adopt_weights(1)
        await at.pool.wake_cache()
        for engine in at.started:
            assert engine.calls[2:] == ["sleep", "wake_weights", "adopt_weights", "wake_cache"]
        await at.pool.close()

    play(scenario())


def test_an_engine_that_dies_going_to_sleep_is_started_again_when_there_is_room(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        dying, heir = Engine(1, sleep=gone()), Engine(1)
        at = stage(Engine(0), dying, later=[heir])
        await at.meet()
        assert await at.pool.sleep() == [None, None], "the policy's turn comes all the same"
        assert at.killed == [dying], "its memory is free"
        await asyncio.sleep(0.1)
        assert at.started == [at.started[0], dying], "the policy has the GPUs"
        assert await at.pool.restore() == 1
        assert heir.calls == ["setup", "check"]
        await at.pool.close()

    play(scenario())


def test_an_engine_that_dies_asleep_is_found_when_it_is_woken(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        dying, heir = Engine(1, wake_weights=gone()), Engine(1)
        at = stage(Engine(0), dying, later=[heir])
        await at.meet()
        await at.pool.sleep()
        with pytest.raises(EngineLost, match=r"^rollout rank 1 died"):
            await at.pool.wake_weights()
        assert await at.pool.restore() == 1
        await at.pool.sleep()
        assert heir.calls == ["setup", "check", "sleep"], "it has everything, and others may need room"
        await at.pool.close()

    play(scenario())


def test_what_fails_before_the_policy_was_met_ends_the_start(stage: Callable[..., Stage]) -> None:
    async def scenario() -> None:
        at = stage(Engine(0), Engine(1, sleep=gone()))
        await at.pool.setup()
        with pytest.raises(WorkerDied, match=r"rollout rank 1 died"):
            await at.pool.sleep()
        await at.pool.close()

    play(scenario())
