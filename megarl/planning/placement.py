"""Which node every worker of a run gets, decided before anything is reserved. Needs no Ray: `megarl plan` asks it too.

Invariants: policy ranks are numbered node after node, each node being filled before the next, so that neighbours share
one; an engine lies on one node; no node gives more than it has.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig


class ShortageError(ConfigError):
    """The nodes do not hold the workers."""


Resources = Mapping[str, float]
"""Ray's names of what a worker needs and a node has -> how much: "CPU", "GPU"."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, and what of it is free."""

    name: str
    """For messages."""
    free: Resources
    ray_id: str = ""
    """Ray's name of it, where it is of a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a run."""

    ranks: int
    """Policy ranks."""
    tensor: int
    """Neighbouring policy ranks that must share a node."""
    engines: int
    engine_tensor: int
    """Tensor ranks of an engine, which share a node."""
    on_gpu: bool
    """Without, a policy rank or an engine is one logical CPU, however many cores there are: they take turns."""

    @classmethod
    def of(cls, config: RunConfig, *, engines: int, on_gpu: bool) -> Self:
        """The workers of a configuration, with so many engines."""
        parallel = config.parallel
        return cls(
            ranks=parallel.world_size,
            tensor=parallel.tensor,
            engines=engines,
            engine_tensor=config.rollout.tensor,
            on_gpu=on_gpu,
        )

    @property
    def rank_needs(self) -> dict[str, float]:
        """Of one policy rank."""
        return {"CPU": 1.0, "GPU": 1.0} if self.on_gpu else {"CPU": 1.0}

    @property
    def engine_needs(self) -> dict[str, float]:
        """Of one engine."""
        return {"CPU": 1.0, "GPU": float(self.engine_tensor)} if self.on_gpu else {"CPU": 1.0}

    def __str__(self) -> str:
        return f"{self.ranks} policy ranks and {self.engines} engines of {self.engine_tensor}"


@dataclass(frozen=True)
class PlacementPlan:
    """A node for every worker, as an index into the nodes that were planned with."""

    rank_nodes: tuple[int, ...]
    engine_nodes: tuple[int, ...]
    tensor: int

    @cached_property
    def divided(self) -> range | None:
        """The first tensor-parallel group, as its policy ranks, that does not lie on one node."""
        groups = (range(first, first + self.tensor) for first in range(0, len(self.rank_nodes), self.tensor))
        return next((group for group in groups if len({self.rank_nodes[rank] for rank in group}) > 1), None)

    def describe_divided(self, nodes: Sequence[Node]) -> str | None:
        """What is wrong with that group, for a message that goes on with what to change."""
        if self.divided is None:
            return None
        ranks = self.divided[0], self.divided[-1]
        first, last = (nodes[self.rank_nodes[rank]].name for rank in ranks)
        return (
            f"policy ranks {ranks[0]} to {ranks[1]} are one tensor-parallel group and lie on nodes {first} and {last}"
        )

    @property
    def num_nodes(self) -> int:
        """Nodes up to the last that is used."""
        return max(*self.rank_nodes, *self.engine_nodes, 0) + 1


def plan_placement(nodes: Sequence[Node], workers: Workers) -> PlacementPlan:
    """Fill the nodes in the order given, those first on which policy ranks fill whole tensor groups; the policy, then
    the engines. Where that leaves no room, or divides a tensor group, the smallest nodes first, then the largest.

    Where a tensor group is divided in any case the plan's `divided` says so, for the caller to refuse it in its own
    words. ShortageError, with what is needed and what is there, where the nodes do not hold the workers.
    """
    best: PlacementPlan | None = None
    for order in _orders(nodes, workers):
        plan = _fill(nodes, workers, order)
        if plan is not None and plan.divided is None:
            return plan
        best = best or plan
    if best is None:
        raise ShortageError(_describe_shortage(nodes, workers))
    return best


def check_whole_groups(plan: PlacementPlan, nodes: Sequence[Node]) -> None:
    """ConfigError when tensor-parallel neighbours are not on one node."""
    if (text := plan.describe_divided(nodes)) is not None:
        raise ConfigError(
            f"{text}: a node has room for a number of ranks that parallel.tensor {plan.tensor} does not divide. Give "
            "the run whole nodes, or choose rollout.engines x tensor so that whole groups fit"
        )


def _orders(nodes: Sequence[Node], workers: Workers) -> Iterator[list[int]]:
    rooms = [_room(node.free, workers.rank_needs) for node in nodes]
    for by_size in (0, 1, -1):
        yield sorted(range(len(nodes)), key=lambda at: (rooms[at] % workers.tensor > 0, by_size * rooms[at]))


def _fill(nodes: Sequence[Node], workers: Workers, order: Sequence[int]) -> PlacementPlan | None:
    left = [dict(node.free) for node in nodes]
    ranks = _take(left, order, workers.rank_needs, workers.ranks)
    engines = _take(left, order, workers.engine_needs, workers.engines)
    if len(ranks) < workers.ranks or len(engines) < workers.engines:
        return None
    return PlacementPlan(tuple(ranks), tuple(engines), workers.tensor)


def _take(left: Sequence[MutableMapping[str, float]], order: Sequence[int], need: Resources, count: int) -> list[int]:
    """The nodes of up to `count` workers of one kind, node after node; what they need goes from what is left."""
    taken: list[int] = []
    for at in order:
        here = min(_room(left[at], need), count - len(taken))
        for kind, amount in need.items():
            left[at][kind] = left[at].get(kind, 0.0) - here * amount
        taken += [at] * here
        if len(taken) == count:
            break
    return taken


def _room(free: Resources, need: Resources) -> int:
    """Workers that fit."""
    return min(int(free.get(kind, 0.0) // amount) for kind, amount in need.items())


def _describe_shortage(nodes: Sequence[Node], workers: Workers) -> str:
    rank, engine = workers.rank_needs, workers.engine_needs
    needed = {kind: workers.ranks * rank[kind] + workers.engines * engine[kind] for kind in rank}
    found = {kind: sum(node.free.get(kind, 0.0) for node in nodes) for kind in rank}
    return (
        f"the Ray cluster cannot place {workers}: needed {_list(needed)}, found {_list(found)} free on {len(nodes)} "
        f"node{'' if len(nodes) == 1 else 's'}; an engine must fit on one node. Add nodes, free them of other jobs, or "
        "lower parallel.world_size or rollout.engines"
    )


def _list(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
