"""Engines on the policy's GPUs (cluster.colocate): which ranks each shares with, and that shared GPUs count once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.planning.placement import PlacementPlan, plan_placement
from megarl.planning.resources import Workers
from megarl.planning.shortage import ScatteredError, ShortageError
from tests.planning.test_placement import cpus, gpus, make_workers


def place(rooms: tuple[int, ...], **workers: object) -> PlacementPlan:
    return plan_placement(gpus(*rooms), make_workers(shared=True, **workers))


@pytest.mark.parametrize(
    ("rooms", "workers", "nodes", "engines"),
    [
        ((8,), {"ranks": 8, "engines": 8}, (0,) * 8, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]),
        ((8,), {"ranks": 8, "tensor": 4, "engines": 2, "engine_tensor": 4}, (0,) * 8, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        # Fewer engines than GPUs: the first ranks share theirs.
        ((4,), {"ranks": 4, "engines": 1, "engine_tensor": 2}, (0,) * 4, [(0, 1)]),
        ((2, 2), {"ranks": 4, "engines": 2, "engine_tensor": 2}, (0, 0, 1, 1), [(0, 1), (2, 3)]),
        # Three ranks and one lie on two nodes: as if the policy were alone only one engine of 2 has neighbours; two
        # ranks on each, in units of both sizes, hold two.
        ((3, 3), {"ranks": 4, "engines": 2, "engine_tensor": 2}, (0, 0, 1, 1), [(0, 1), (2, 3)]),
        # The one that is left over on either node is nobody's.
        ((3, 3), {"ranks": 6, "engines": 2, "engine_tensor": 2}, (0, 0, 0, 1, 1, 1), [(0, 1), (3, 4)]),
    ],
)
def test_engines_share_with_neighbouring_ranks_of_one_node(rooms, workers, nodes, engines) -> None:
    plan = place(rooms, **workers)
    assert plan.rank_nodes == nodes
    assert list(plan.engine_ranks) == engines
    assert plan.engine_nodes == tuple(nodes[ranks[0]] for ranks in engines)


def test_as_many_gpus_as_the_policy_has_are_enough_and_no_fewer() -> None:
    with pytest.raises(ShortageError, match="4 policy ranks and 4 engines of 1 on their GPUs: needed 8 CPU and 4 GPU"):
        place((3,), ranks=4, engines=4)
    assert place((4,), ranks=4, engines=4).num_nodes == 1


def test_nodes_that_cut_the_engines_are_refused() -> None:
    with pytest.raises(ScatteredError) as error:
        place((3, 3), ranks=6, tensor=3, engines=3, engine_tensor=2)
    assert str(error.value) == (
        "the GPUs of 6 policy ranks hold 2 of 3 engines of 2 (cluster.colocate): an engine shares those of "
        "neighbouring ranks of one node; lower rollout.engines, or choose rollout.tensor and parallel.tensor so that "
        "both divide the GPUs of a node"
    )


def test_a_shared_gpu_comes_with_a_cpu_for_each_process() -> None:
    with pytest.raises(ShortageError, match=r"fewer of them free than 2 a GPU: every policy rank and every engine"):
        plan_placement(gpus(4, cpus=7.0), make_workers(shared=True, engines=4))
    assert plan_placement(gpus(4, cpus=8.0), make_workers(shared=True, engines=4)).engine_ranks[3] == (3,)


def test_without_gpus_both_take_turns_on_a_cpu() -> None:
    """An engine too is one of them, whatever its tensor size."""
    workers = make_workers(shared=True, ranks=2, engines=2, engine_tensor=4, on_gpu=False)
    assert plan_placement(cpus(1, 1), workers).engine_ranks == ((0,), (1,))
    assert (workers.needs, workers.half) == ({"CPU": 2.0}, {"CPU": 0.5})


@settings(max_examples=200)
@given(
    rooms=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    tensor=st.sampled_from([1, 2, 4]),
    groups=st.integers(1, 4),
    engine_tensor=st.sampled_from([1, 2, 4, 8]),
    engines=st.integers(1, 6),
)
def test_what_holds_of_every_plan(rooms, tensor, groups, engine_tensor, engines) -> None:
    workers = make_workers(
        shared=True, ranks=tensor * groups, tensor=tensor, engines=engines, engine_tensor=engine_tensor
    )
    try:
        plan = plan_placement(gpus(*rooms), workers)
    except ShortageError:
        return
    assert len(plan.engine_ranks) == engines
    shared = [rank for ranks in plan.engine_ranks for rank in ranks]
    assert len(shared) == len(set(shared)) == engines * engine_tensor
    for ranks, node in zip(plan.engine_ranks, plan.engine_nodes, strict=True):
        assert {plan.rank_nodes[rank] for rank in ranks} == {node}
        assert ranks == tuple(range(ranks[0], ranks[0] + engine_tensor))
    for node, room in enumerate(rooms):
        assert plan.rank_nodes.count(node) <= room


def test_workers_of_a_supervised_run_share_nothing() -> None:
    """Its placement asks for no engines."""
    assert Workers(ranks=2, tensor=1, engines=0, engine_tensor=1, on_gpu=True).rank_needs == {"CPU": 1.0, "GPU": 1.0}
