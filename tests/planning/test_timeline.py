"""What a run's memory is compared with by phase: the numbers of `megarl plan`, on a CPU of their tensors alone."""

import pytest

from megarl.cli.plan_config import Planned, PlanOptions, load_planned
from megarl.planning.engine_memory import GIB
from megarl.planning.policy_memory import CONTEXT_BYTES
from megarl.planning.timeline import plan_timeline
from megarl.planning.turns import Turn
from tests.models.shapes import CONFIGS
from tests.planning.plans import plan_of

TURNS = "cluster.colocate=true"
DELTA = ("rollout.publish.transport=network", "rollout.publish.delta=true")


def planned(*overrides: str) -> Planned:
    return load_planned(CONFIGS / "qwen2.5-7b.json", overrides, PlanOptions(gpus=8, tensor=2))


def timeline(*overrides: str, gib: float | None = 80) -> dict[str, Turn]:
    found = planned(*overrides)
    turns = plan_timeline(found.config, found.shape, gpu_bytes=None if gib is None else int(gib * GIB))
    return {turn.name: turn for turn in turns}


@pytest.mark.parametrize("more", [(), DELTA, ("objective.auxiliary.kl={}",)])
def test_on_shared_gpus_it_is_what_plan_prints(more: tuple[str, ...]) -> None:
    shared = plan_of("qwen2.5-7b", TURNS, *more, gpus=8, tensor=2).shared
    assert shared is not None
    assert tuple(timeline(TURNS, *more).values()) == shared.turns


def test_on_their_own_gpus_nobody_gives_way() -> None:
    plan = plan_of("qwen2.5-7b", gpus=8, tensor=2)
    worst, found = plan.worst, timeline()
    assert list(found) == ["generate", "score", "update", "publish"]
    assert found["update"].policy == worst.total
    assert found["score"].policy == worst.total - worst.activations - worst.publication
    standing = worst.weights + worst.gradients + worst.optimizer + worst.publication + worst.context
    assert found["generate"].policy == found["publish"].policy == standing
    assert {turn.engine for turn in found.values()} == {plan.rollout.budget}
    staged = timeline("rollout.publish.staging=device")
    assert staged["publish"].engine - staged["generate"].engine == plan.rollout.weights


def test_a_cpu_has_no_context_and_nothing_moves() -> None:
    on_cpu, on_gpu = timeline(gib=None), timeline()
    assert all(on_gpu[name].policy - on_cpu[name].policy == CONTEXT_BYTES for name in on_cpu)
    in_turns, moved = timeline(TURNS, gib=None), timeline(TURNS)
    assert list(in_turns) == list(moved)
    optimizer = plan_of("qwen2.5-7b", TURNS, gpus=8, tensor=2).worst.optimizer
    assert in_turns["generate"].policy == moved["generate"].policy - CONTEXT_BYTES + optimizer
    assert in_turns["update"].policy == moved["update"].policy - CONTEXT_BYTES


def test_an_engine_on_a_cpu_has_its_weights_and_its_cache_all_the_time() -> None:
    plan = plan_of("qwen2.5-7b", gpus=8, tensor=2)
    held = plan.rollout.weights + plan.rollout.working
    for turns in (), (TURNS,):
        sizes = {turn.engine for turn in timeline(*turns, "rollout.cpu_kv_cache_gib=3", gib=None).values()}
        assert sizes == {held + 3 * GIB}
