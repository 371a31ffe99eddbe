"""Who goes on which node: by hand, and what holds on any cluster."""

import itertools
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.planning.placement import PlacementPlan, by_topology, plan_placement
from megarl.planning.resources import Node, Workers
from megarl.planning.shortage import ScatteredError, ShortageError


def gpus(*rooms: int, domains: str = "", cpus: float = 64.0) -> list[Node]:
    """Nodes with so many GPUs and more CPUs; domains: a letter for each node, " " for none."""
    return [
        Node(f"n{at}", {"CPU": cpus, "GPU": float(room), "memory": 1e9}, domain=domains[at : at + 1].strip())
        for at, room in enumerate(rooms)
    ]


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
        # In the order given the policy would lie on one node more.
        ((3, 5), {"ranks": 4, "tensor": 2}, (1,) * 4, ()),
        ((3, 4, 5), {"ranks": 8, "tensor": 2}, (1,) * 4 + (2,) * 4, ()),
        ((2, 6, 8), {"ranks": 8, "tensor": 4}, (2,) * 8, ()),
        # Either node, filled first, would leave one engine no place: it takes as many ranks as leave both theirs.
        ((7, 7), {"ranks": 6, "engines": 2, "engine_tensor": 4}, (0, 0, 0, 1, 1, 1), (0, 1)),
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
        "the Ray cluster cannot place 2 policy ranks and 2 engines of 4: needed 4 CPU, found 3 CPU free on 2 nodes\n"
        "  missing: 1 CPU in all\n"
        "  n0: 2 CPU free\n"
        "  n1: 1 CPU free\n"
        "Add nodes, free them of other jobs, or lower parallel.world_size, parallel.tensor, rollout.engines or "
        "rollout.tensor"
    )


def missing(nodes: list[Node], **workers: Any) -> tuple[list[str], list[str]]:
    """(what is missing, what the nodes have) of a refusal."""
    with pytest.raises(ShortageError) as error:
        place(nodes, **workers)
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    reasons = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    return reasons, lines[len(reasons) :]


def test_every_worker_wants_a_cpu_beside_its_gpus() -> None:
    """Five CPUs are enough for four ranks and one engine; four are not, however many the node has."""
    workers = {"ranks": 4, "engines": 1, "engine_tensor": 4}
    assert place([Node("a", {"CPU": 5.0, "GPU": 8.0})], **workers) == ((0,) * 4, (0,))
    in_use = Node("a", {"CPU": 4.0, "GPU": 8.0}, total={"CPU": 16.0, "GPU": 8.0})
    assert missing([in_use], **workers) == (
        [
            "1 CPU in all",
            "CPU on a, with fewer of them free than GPU: every policy rank and every engine takes one; show Ray more "
            "(`ray start --num-cpus`, Slurm's --cpus-per-task)",
        ],
        ["a: 4 of 16 CPU and 8 GPU free"],
    )
    # Enough in all, but not where the GPUs are.
    nodes = [Node("a", {"CPU": 2.0, "GPU": 8.0}), Node("b", {"CPU": 32.0, "GPU": 0.0})]
    reasons, _ = missing(nodes, ranks=4)
    assert [reason.partition(":")[0] for reason in reasons] == ["CPU on a, with fewer of them free than GPU"]


def test_an_engine_needs_one_node_however_many_gpus_there_are() -> None:
    """An NVLink domain does not help it."""
    for domains in ("", "ddd"):
        assert missing(gpus(3, 3, 3, domains=domains), ranks=1, engines=1, engine_tensor=4) == (
            ["one node with 1 CPU and 4 GPU free for an engine (rollout.tensor 4)"],
            ["n0, n1, n2: 64 CPU and 3 GPU free"],
        )


def test_what_is_in_use_is_not_there() -> None:
    """Half a GPU, of another job's actor, holds no rank, and two halves on two nodes none either."""
    assert place([Node("a", {"CPU": 8.0, "GPU": 1.5}), Node("b", {"CPU": 8.0, "GPU": 3.0})], ranks=4) == (
        (0, 1, 1, 1),
        (),
    )
    halves = [Node(f"n{at}", {"CPU": 8.0, "GPU": 0.5}) for at in range(9)]
    assert missing(halves, ranks=2) == (["2 GPU in all"], ["n0, n1, n2 and 6 more: 8 CPU and 0.5 GPU free"])
    assert missing([], ranks=1) == (["1 CPU in all", "1 GPU in all"], [])


def test_a_tensor_group_lies_on_one_node() -> None:
    """Two nodes of 6 GPUs and groups of 4: there are 12 GPUs, and no third group."""
    with pytest.raises(ScatteredError):
        place(gpus(6, 6), ranks=12, tensor=4)
    assert missing(gpus(6, 6), ranks=12, tensor=4) == (
        ["room for 3 tensor-parallel groups of 4 beside 0 engines of 1, none of them divided: every node leaves a part "
         "over"],
        ["n0, n1: 64 CPU and 6 GPU free"],
    )  # fmt: skip
    # The third group's place is another node's; engines take what the groups leave.
    assert place(gpus(6, 6, 6), ranks=12, tensor=4, engines=3, engine_tensor=2) == (
        (0,) * 4 + (1,) * 4 + (2,) * 4,
        (0, 1, 2),
    )
    assert missing(gpus(4, 6), ranks=8, tensor=8)[0] == [
        "room on one node for a tensor-parallel group of 8 policy ranks (parallel.tensor); the most is 6 ranks, on n1"
    ]


@pytest.mark.parametrize(
    ("rooms", "domains", "workers", "ranks", "engines"),
    [
        # Four nodes of 4 GPUs, two and two in an NVLink domain: groups of 8.
        ((4, 4, 4, 4), "aabb", {"ranks": 16, "tensor": 8}, (0,) * 4 + (1,) * 4 + (2,) * 4 + (3,) * 4, ()),
        # A group that fits on a node stays there, whatever the domain.
        ((4, 4), "aa", {"ranks": 6, "tensor": 2}, (0,) * 4 + (1,) * 2, ()),
        ((6, 6), "aa", {"ranks": 8, "tensor": 4}, (0,) * 4 + (1,) * 4, ()),
        # The third group takes what the first two leave of both.
        ((6, 6), "aa", {"ranks": 12, "tensor": 4}, (0,) * 6 + (1,) * 6, ()),
        # Not across domains: the domain of 4 + 4 is the only place for 8.
        ((4, 4, 4), "abb", {"ranks": 8, "tensor": 8}, (1,) * 4 + (2,) * 4, ()),
        # Engines leave the domain to the group.
        (
            (4, 4, 4, 4),
            "aa b",
            {"ranks": 8, "tensor": 8, "engines": 2, "engine_tensor": 4},
            (0,) * 4 + (1,) * 4,
            (2, 3),
        ),
        # An engine in the middle of a domain takes its last node.
        (
            (4, 4, 4),
            "aaa",
            {"ranks": 8, "tensor": 8, "engines": 2, "engine_tensor": 2},
            (0,) * 4 + (1,) * 4,
            (2, 2),
        ),
    ],
)
def test_groups_in_an_nvlink_domain(rooms, domains, workers, ranks, engines) -> None:
    assert place(gpus(*rooms, domains=domains), **workers) == (ranks, engines)


def test_a_group_that_no_domain_holds() -> None:
    reasons, _ = missing(gpus(4, 4, 4, domains="aab"), ranks=12, tensor=12)
    assert reasons == [
        "room on one node or in one NVLink domain for a tensor-parallel group of 12 policy ranks (parallel.tensor); "
        "the most is 8 ranks, on n0, n1"
    ]


def test_neighbours_in_the_network_come_together() -> None:
    nodes = [
        Node("n10", {}, switches=("top", "leaf2")),
        Node("n9", {}, switches=("top", "leaf10")),
        Node("n2", {}, switches=("top", "leaf2")),
        Node("n1", {}, domain="rack2"),
        Node("n3", {}, domain="rack1"),
        Node("n4", {}, domain="rack2"),
    ]
    assert [node.name for node in by_topology(nodes)] == ["n3", "n1", "n4", "n2", "n10", "n9"]
    assert by_topology(reversed(nodes)) == by_topology(nodes)


def test_nodes_that_are_taken() -> None:
    assert PlacementPlan((0, 0), (3, 1)).num_nodes == 4
    assert PlacementPlan((0, 2), ()).num_nodes == 3


CLUSTERS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(" abc"), st.integers(0, 9)), min_size=1, max_size=4)
"""GPUs, NVLink domain and CPUs of every node."""


def make_nodes(cluster: list[tuple[int, str, int]]) -> list[Node]:
    return [
        Node(f"n{at}", {"CPU": float(cpus), "GPU": float(room)}, domain=domain.strip())
        for at, (room, domain, cpus) in enumerate(cluster)
    ]


def parts_of(nodes: list[Node]) -> list[list[int]]:
    """The nodes of each NVLink domain."""
    domains: dict[str, list[int]] = {}
    for at, node in enumerate(nodes):
        domains.setdefault(node.domain or node.name, []).append(at)
    return list(domains.values())


def holds(nodes: list[Node], workers: Workers, parts: list[list[int]]) -> bool:
    """Whether any engines per node leave every part room for enough groups: every way is tried."""
    free = [(int(node.free["CPU"]), int(node.free["GPU"])) for node in nodes]
    most = [min(cpus, gpus // workers.engine_tensor) for cpus, gpus in free]
    for engines in itertools.product(*(range(count + 1) for count in most)):
        ranks = [min(cpus - k, gpus - k * workers.engine_tensor) for k, (cpus, gpus) in zip(engines, free, strict=True)]
        groups = sum(sum(ranks[at] for at in part) // workers.tensor for part in parts)
        if sum(engines) >= workers.engines and groups >= workers.groups:
            return True
    return False


@settings(deadline=None, max_examples=500)
@given(
    cluster=CLUSTERS,
    groups=st.integers(1, 5),
    tensor=st.sampled_from([1, 2, 3, 4, 8]),
    engines=st.integers(0, 4),
    engine_tensor=st.sampled_from([1, 2, 3, 4]),
)
def test_a_plan_keeps_the_rules_and_there_is_one_whenever_there_can_be(
    cluster, groups, tensor, engines, engine_tensor
) -> None:
    nodes = make_nodes(cluster)
    workers = make_workers(ranks=groups * tensor, tensor=tensor, engines=engines, engine_tensor=engine_tensor)
    on_nodes = holds(nodes, workers, [[at] for at in range(len(nodes))])
    parts = parts_of(nodes)
    if not on_nodes and not holds(nodes, workers, parts):
        enough = sum(cpus for _, _, cpus in cluster) >= workers.ranks + engines
        enough = enough and sum(room for room, _, _ in cluster) >= workers.ranks + engines * engine_tensor
        with pytest.raises(ShortageError) as refused:
            plan_placement(nodes, workers)
        assert (refused.type is ScatteredError) == enough
        return
    plan = plan_placement(nodes, workers)
    assert (len(plan.rank_nodes), len(plan.engine_nodes)) == (workers.ranks, engines)
    for at, (room, _, cpus) in enumerate(cluster):  # no node gives more than it has
        ranks, here = plan.rank_nodes.count(at), plan.engine_nodes.count(at)
        assert ranks + here <= cpus or ranks + here == 0
        assert ranks + here * engine_tensor <= room
    lying = [set(plan.rank_nodes[first : first + tensor]) for first in range(0, workers.ranks, tensor)]
    assert all(any(group <= set(part) for part in parts) for group in lying)
    if on_nodes:
        assert all(len(group) == 1 for group in lying)
        # Node after node: a node's ranks are one stretch.
        stretches = [node for node, _ in itertools.groupby(plan.rank_nodes)]
        assert len(stretches) == len(set(stretches))
    assert plan_placement(nodes, workers) == plan


@settings(deadline=None, max_examples=300)
@given(
    nodes=st.integers(1, 6),
    room=st.integers(1, 9),
    groups=st.integers(1, 20),
    tensor=st.integers(1, 3),
    engines=st.integers(0, 6),
    engine_tensor=st.integers(1, 4),
)
def test_equal_nodes_are_filled_one_after_the_other(nodes, room, groups, tensor, engines, engine_tensor) -> None:
    """Wherever the engines find room then."""
    each = room // tensor
    workers = make_workers(ranks=groups * tensor, tensor=tensor, engines=engines, engine_tensor=engine_tensor)
    filled = [min(each, max(0, groups - at * each)) for at in range(nodes)]
    fit = sum((room - here * tensor) // engine_tensor for here in filled)
    if sum(filled) == groups and fit >= engines:
        plan = plan_placement(gpus(*[room] * nodes), workers)
        assert plan.rank_nodes == tuple(at for at, here in enumerate(filled) for _ in range(here * tensor))


def test_a_large_cluster_is_planned_at_once() -> None:
    """A thousand nodes, of which no order leaves the engines room: tensor groups have to give way everywhere."""
    nodes = gpus(*[7] * 1000)
    before = time.perf_counter()
    plan = plan_placement(nodes, make_workers(ranks=2500, engines=1000, engine_tensor=4))
    assert time.perf_counter() - before < 20.0
    assert Counter(plan.engine_nodes) == dict.fromkeys(range(1000), 1)
    assert set(Counter(plan.rank_nodes).values()) <= {1, 2, 3}
