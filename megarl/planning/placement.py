"""Which node every worker of a run gets, decided before anything is reserved. Needs no Ray: `megarl plan` asks it too.

Invariants: a tensor-parallel group of the policy lies on one node or, where none has room for it, in one NVLink domain;
an engine lies on one node; policy ranks are numbered node after node, so that pipeline stages and replicas are what
lies on different nodes; no node gives more than it has; the same nodes and workers give the same plan. Engines that
share the policy's GPUs (cluster.colocate) have those of neighbouring ranks of one node, and no rank has two.
"""

import math
import re
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from megarl.planning.packing import Bin, pack
from megarl.planning.resources import Node, Resources, Workers, room
from megarl.planning.shortage import ScatteredError, ShortageError, describe_shortage, holds_all


@dataclass(frozen=True)
class PlacementPlan:
    """A node for every worker, as an index into the nodes that were planned with."""

    rank_nodes: tuple[int, ...]
    engine_nodes: tuple[int, ...]
    engine_ranks: tuple[tuple[int, ...], ...] = ()
    """The policy ranks whose GPUs each engine's workers share, in their order; () where engines have their own."""

    @property
    def num_nodes(self) -> int:
        """Nodes up to the last that is used."""
        return max(*self.rank_nodes, *self.engine_nodes, 0) + 1


def by_topology(nodes: Iterable[Node]) -> list[Node]:
    """Neighbours in the network beside each other, those of an NVLink domain together; then by name, in which n2 comes
    before n10."""

    def place(node: Node) -> tuple[Any, ...]:
        return tuple(map(_natural, node.switches)), _natural(node.domain), _natural(node.name), node.ray_id

    return sorted(nodes, key=place)


def plan_placement(nodes: Sequence[Node], workers: Workers) -> PlacementPlan:
    """Fill nodes with whole tensor groups of the policy, node after node, then with engines: in the order given, those
    first that tensor groups fill; or the smallest, or the largest of them first where the policy lies on fewer nodes
    then. Where none of that leaves room for all: as many groups on the first nodes as leave room for all. Only where
    groups do not fit so they lie on several nodes of an NVLink domain. Engines that share the policy's GPUs are dealt
    to its ranks, node after node.

    ShortageError, which says what is missing where, if there is no plan with these rules; ScatteredError if it is not
    the amount.
    """
    return _plan_shared(nodes, workers) if workers.shared else _plan_apart(nodes, workers)


def _plan_shared(nodes: Sequence[Node], workers: Workers) -> PlacementPlan:
    """The policy as if it were alone; where that leaves too few GPUs beside each other, in units that both divide."""
    policy = replace(workers, engines=0)
    try:
        plans = [_plan_apart(nodes, policy)]
    except ShortageError as error:
        raise type(error)(str(error).replace(str(policy), str(workers), 1)) from None
    unit = math.lcm(workers.tensor, workers.engine_tensor)
    if workers.ranks % unit == 0:
        with suppress(ShortageError):
            plans.append(_plan_apart(nodes, replace(policy, tensor=unit)))
    dealt = [_deal(plan.rank_nodes, workers) for plan in plans]
    for plan, places in zip(plans, dealt, strict=True):
        if len(places) >= workers.engines:
            sharing = tuple(places[: workers.engines])
            return PlacementPlan(plan.rank_nodes, tuple(plan.rank_nodes[ranks[0]] for ranks in sharing), sharing)
    most = max(map(len, dealt))
    raise ScatteredError(
        f"the GPUs of {workers.ranks} policy ranks hold {most} of {workers.engines} engines of "
        f"{workers.engine_tensor} (cluster.colocate): an engine shares those of neighbouring ranks of one node; lower "
        "rollout.engines, or choose rollout.tensor and parallel.tensor so that both divide the GPUs of a node"
    )


def _deal(rank_nodes: Sequence[int], workers: Workers) -> list[tuple[int, ...]]:
    """All sets of neighbouring ranks of one node that an engine can share with, none twice."""
    by_node: dict[int, list[int]] = {}
    for rank, node in enumerate(rank_nodes):
        by_node.setdefault(node, []).append(rank)
    size = workers.engine_tensor if workers.on_gpu else 1  # an engine without GPUs is one logical CPU
    return [
        tuple(ranks[first : first + size])
        for ranks in by_node.values()
        for first in range(0, len(ranks) // size * size, size)
    ]


def _plan_apart(nodes: Sequence[Node], workers: Workers) -> PlacementPlan:
    filled = [plan for order in _orders(nodes, workers) if (plan := _fill(nodes, workers, order)) is not None]
    if filled:
        return min(filled, key=lambda plan: len(set(plan.rank_nodes)))
    partitions = list(_partitions(nodes))
    for parts in partitions:
        if (plan := _pack(nodes, workers, parts)) is not None:
            return plan
    kind = ScatteredError if holds_all(nodes, workers) else ShortageError
    raise kind(describe_shortage(nodes, workers, parts=partitions[-1]))


def _orders(nodes: Sequence[Node], workers: Workers) -> Iterator[tuple[int, ...]]:
    """Without repetitions."""
    rooms = [room(node.free, workers.rank_needs) for node in nodes]
    orders = (
        tuple(sorted(range(len(nodes)), key=lambda at: (rooms[at] % workers.tensor > 0, by_size * rooms[at])))
        for by_size in (0, 1, -1)
    )
    yield from dict.fromkeys(orders)


def _fill(nodes: Sequence[Node], workers: Workers, order: Sequence[int]) -> PlacementPlan | None:
    left = [dict(node.free) for node in nodes]
    groups = _take(left, order, workers.group_needs, workers.groups)
    engines = _take(left, order, workers.engine_needs, workers.engines)
    if len(groups) < workers.groups or len(engines) < workers.engines:
        return None
    return PlacementPlan(tuple(at for at in groups for _ in range(workers.tensor)), tuple(engines))


def _take(left: Sequence[MutableMapping[str, float]], order: Sequence[int], need: Resources, count: int) -> list[int]:
    """The nodes of up to `count` of one kind, node after node; what they need goes from what is left."""
    taken: list[int] = []
    for at in order:
        here = min(room(left[at], need), count - len(taken))
        for kind, amount in need.items():
            left[at][kind] = left[at].get(kind, 0.0) - here * amount
        taken += [at] * here
        if len(taken) == count:
            break
    return taken


def _partitions(nodes: Sequence[Node]) -> Iterator[list[list[int]]]:
    """Parts of the cluster in which a tensor group must lie: its nodes, then its NVLink domains where it has any."""
    yield [[at] for at in range(len(nodes))]
    domains: dict[str | int, list[int]] = {}
    for at, node in enumerate(nodes):
        domains.setdefault(node.domain or at, []).append(at)
    if len(domains) < len(nodes):
        yield list(domains.values())


def _pack(nodes: Sequence[Node], workers: Workers, parts: Sequence[Sequence[int]]) -> PlacementPlan | None:
    bins = [
        Bin.of({at: nodes[at].free for at in part}, rank_needs=workers.rank_needs, engine_needs=workers.engine_needs)
        for part in parts
    ]
    packed = pack(bins, tensor=workers.tensor, groups=workers.groups, engines=workers.engines)
    return None if packed is None else PlacementPlan(*packed)


def _natural(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", text))
