"""Who goes on which node: by hand, and what holds on any cluster."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.base import ConfigError
from megarl.planning.placement import (
    Node,
    PlacementPlan,
    ShortageError,
    Workers,
    check_whole_groups,
    plan_placement,
)


def gpus(*rooms: int) -> list[Node]:
    """Nodes with so many GPUs and more CPUs."""
    return [Node(f"n{at}", {"CPU": 64.0, "GPU": float(room), "memory": 1e9}) for at, room in enumerate(rooms)]


def cpus(*rooms: int) -> list[Node]:
    return [Node(f"n{at}", {"CPU": float(room)}) for at, room in enumerate(rooms)]


def make_workers(**changes: Any) -> Workers:
    values = {"ranks": 4, "tensor": 1, "engines": 0, "engine_tensor": 1, "on_gpu": True}
    return Workers(**{**values, **changes})


def place(nodes: list[Node], **workers: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    plan = plan_placement(nodes, make_workers(**workers))
    return plan.rank_nodes, plan.engine_nodes


@pytest.mark.parametrize(
    ("rooms", "workers", "ranks", "engines"),
    [
        # Node after node; engines fill what is left.
        ((8, 8), {"ranks": 12, "engines": 4}, (0,) * 8 + (1,) * 4, (1,) * 4),
        # The place left on node 0 is too small for an engine of 2, and one of 1 would take it.
        ((4, 4), {"ranks": 3, "engines": 2, "engine_tensor": 2}, (0, 0, 0), (1, 1)),
        ((4, 4), {"ranks": 3, "engines": 2}, (0, 0, 0), (0, 1)),
        ((4, 4, 4), {"ranks": 2, "engines": 3, "engine_tensor": 2}, (0, 0), (0, 1, 1)),
        ((4, 4, 4), {"ranks": 4, "engines": 2, "engine_tensor": 3}, (0,) * 4, (1, 2)),
        ((0, 2, 0, 2), {"ranks": 4}, (1, 1, 3, 3), ()),
        # Three free GPUs hold one and a half tensor groups: that node comes last.
        ((3, 8), {"ranks": 8, "tensor": 2}, (1,) * 8, ()),
        ((3, 8), {"ranks": 10, "tensor": 2}, (1,) * 8 + (0, 0), ()),
        # The node of 8 is the only one for an engine of 8, or for engines of 4 that a policy of 6 would cut.
        ((8, 4), {"ranks": 4, "engines": 1, "engine_tensor": 8}, (1,) * 4, (0,)),
        ((8, 6), {"ranks": 6, "tensor": 2, "engines": 2, "engine_tensor": 4}, (1,) * 6, (0, 0)),
        # In the order given, and smallest first, a group would be divided.
        ((3, 5), {"ranks": 4, "tensor": 2}, (1,) * 4, ()),
        ((3, 4, 5), {"ranks": 8, "tensor": 2}, (1,) * 4 + (2,) * 4, ()),
        # Smallest first would divide a group: 2 on the node of 2, then 4 and 2 of the next four.
        ((2, 6, 8), {"ranks": 8, "tensor": 4}, (2,) * 8, ()),
    ],
)
def test_placements_by_hand(rooms, workers, ranks, engines) -> None:
    assert place(gpus(*rooms), **workers) == (ranks, engines)


def test_without_gpus_a_worker_is_one_cpu() -> None:
    """An engine too, whatever its tensor size."""
    workers = {"ranks": 2, "engines": 2, "engine_tensor": 4, "on_gpu": False}
    assert place(cpus(3, 1), **workers) == ((0, 0), (0, 1))
    with pytest.raises(ShortageError) as error:
        place(cpus(2, 1), **workers)
    assert str(error.value) == (
        "the Ray cluster cannot place 2 policy ranks and 2 engines of 4: needed 4 CPU, found 3 CPU free on 2 nodes; an "
        "engine must fit on one node. Add nodes, free them of other jobs, or lower parallel.world_size or "
        "rollout.engines"
    )


def test_every_worker_wants_a_cpu_beside_its_gpus() -> None:
    """Five CPUs are enough for four ranks and one engine; four are not."""
    workers = {"ranks": 4, "engines": 1, "engine_tensor": 4}
    assert place([Node("a", {"CPU": 5.0, "GPU": 8.0})], **workers) == ((0,) * 4, (0,))
    with pytest.raises(ShortageError, match="needed 5 CPU and 8 GPU, found 4 CPU and 8 GPU free on 1 node;"):
        place([Node("a", {"CPU": 4.0, "GPU": 8.0})], **workers)


def test_an_engine_needs_one_node_however_many_gpus_there_are() -> None:
    with pytest.raises(ShortageError, match="needed 2 CPU and 5 GPU, found 192 CPU and 9 GPU free on 3 nodes"):
        place(gpus(3, 3, 3), ranks=1, engines=1, engine_tensor=4)


def test_what_is_in_use_is_not_there() -> None:
    """Half a GPU, of another job's actor, holds no rank."""
    assert place([Node("a", {"CPU": 8.0, "GPU": 1.5}), Node("b", {"CPU": 8.0, "GPU": 3.0})], ranks=4) == (
        (0, 1, 1, 1),
        (),
    )
    with pytest.raises(ShortageError, match="found 0 CPU and 0 GPU free on 0 nodes"):
        place([], ranks=1)


def test_a_divided_tensor_group_is_named() -> None:
    """Two nodes of 6 GPUs and groups of 4: the second group would lie on both."""
    workers = make_workers(ranks=12, tensor=4)
    nodes = gpus(6, 6)
    plan = plan_placement(nodes, workers)
    assert plan.rank_nodes == (0,) * 6 + (1,) * 6
    assert plan.divided == range(4, 8)
    with pytest.raises(ConfigError) as error:
        check_whole_groups(plan, nodes)
    assert str(error.value) == (
        "policy ranks 4 to 7 are one tensor-parallel group and lie on nodes n0 and n1: a node has room for a number of "
        "ranks that parallel.tensor 4 does not divide. Give the run whole nodes, or choose rollout.engines x tensor so "
        "that whole groups fit"
    )
    whole = plan_placement(gpus(8, 4), workers)
    assert whole.divided is None
    check_whole_groups(whole, gpus(8, 4))


@pytest.mark.parametrize(
    ("nodes", "tensor", "divided"),
    [((0, 0, 1, 1), 2, None), ((0, 1, 1, 0), 2, range(0, 2)), ((0, 0, 1, 0), 2, range(2, 4)), ((0, 1), 1, None)],
)
def test_which_group_is_divided(nodes: tuple[int, ...], tensor: int, divided: range | None) -> None:
    assert PlacementPlan(nodes, (), tensor).divided == divided


def test_nodes_that_are_taken() -> None:
    assert PlacementPlan((0, 0), (3, 1), 1).num_nodes == 4
    assert PlacementPlan((0, 2), (), 1).num_nodes == 3


@settings(deadline=None, max_examples=300)
@given(
    rooms=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    groups=st.integers(1, 5),
    tensor=st.sampled_from([1, 2, 4]),
    engines=st.integers(0, 4),
    engine_tensor=st.sampled_from([1, 2, 4]),
)
def test_every_plan_keeps_to_its_nodes(rooms, groups, tensor, engines, engine_tensor) -> None:
    workers = make_workers(ranks=groups * tensor, tensor=tensor, engines=engines, engine_tensor=engine_tensor)
    try:
        plan = plan_placement(gpus(*rooms), workers)
    except ShortageError:
        assert engines or sum(rooms) < workers.ranks
        return
    assert (len(plan.rank_nodes), len(plan.engine_nodes)) == (workers.ranks, engines)
    used = Counter(plan.rank_nodes)
    for node in plan.engine_nodes:
        used[node] += engine_tensor
    assert all(count <= rooms[node] for node, count in used.items())
    # Node after node: a node's ranks are one stretch.
    stretches = [node for at, node in enumerate(plan.rank_nodes) if at == 0 or plan.rank_nodes[at - 1] != node]
    assert len(stretches) == len(set(stretches))
    if all(room % tensor == 0 for room in rooms):
        assert plan.divided is None


@settings(deadline=None, max_examples=300)
@given(
    nodes=st.integers(1, 6),
    room=st.integers(1, 9),
    ranks=st.integers(1, 20),
    engines=st.integers(0, 6),
    engine_tensor=st.integers(1, 4),
)
def test_equal_nodes_hold_what_arithmetic_says(nodes, room, ranks, engines, engine_tensor) -> None:
    full = -(-ranks // room)
    fit = (full * room - ranks) // engine_tensor + (nodes - full) * (room // engine_tensor)
    workers = make_workers(ranks=ranks, engines=engines, engine_tensor=engine_tensor)
    if full <= nodes and fit >= engines:
        assert plan_placement(gpus(*[room] * nodes), workers).rank_nodes == tuple(at // room for at in range(ranks))
    else:
        with pytest.raises(ShortageError):
            plan_placement(gpus(*[room] * nodes), workers)
