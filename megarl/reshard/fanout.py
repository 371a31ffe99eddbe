"""Who hands which part of a block to whom.

Every worker of a block gets all of it once. Four ways, from the plainest:

* direct: each worker gets it from the policy;
* node: a node gets it once, each of its workers a stripe, and the workers exchange stripes inside the node;
* relay: the first node gets it from the policy, every other node from the node before it;
* all_gather: each node gets a stripe from the policy, and the stripes go round the ring of nodes.

In the last two workers exchange stripes inside their node as in the second. The policy ranks that hold a block share
the copies of it evenly, to the element.

Invariants: a hop's range lies inside what its sender has by hops of smaller depth (holders have everything); a worker
hands a stripe on in the pieces in which it came, one from each holder that sends of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Fanout = Literal["direct", "node", "relay", "all_gather"]
FANOUTS: tuple[Fanout, ...] = ("direct", "node", "relay", "all_gather")


class Hop(NamedTuple):
    """Elements [start, stop) of a block go to the worker `receiver`."""

    start: int
    stop: int
    sender: int
    """At depth 0 the index of one of the block's holders, else a worker."""
    receiver: int
    depth: int
    base: int
    """Where the stripe begins that the hop carries on."""


class Stripe(NamedTuple):
    """Elements [start, stop) of a copy of a block, and the nodes they pass through."""

    copy: int
    start: int
    stop: int
    first_node: int
    num_nodes: int
    """Nodes on its way, in ring order from `first_node`."""
    lane: int
    """Position, in each node, of the worker that brings it there; modulo the node's workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How one block spreads. Workers are numbers of receiving ranks over all engines."""

    fanout: Fanout
    num_elements: int
    nodes: tuple[tuple[int, ...], ...]
    """The block's workers, node by node."""
    holders: int
    """Policy ranks that hold it."""
    min_share: int
    """Holders and nodes share in parts of at least so many elements: smaller messages cost more than they save."""

    @property
    def num_copies(self) -> int:
        """How many times the policy sends the block."""
        match self.fanout:
            case "direct":
                return sum(len(workers) for workers in self.nodes)
            case "node":
                return len(self.nodes)
            case "relay" | "all_gather":
                return 1

    def from_holder(self, holder: int) -> Iterator[Hop]:
        """What the holder of this index sends."""
        low, high = self._share(holder)
        for copy in range(low // self.num_elements, -(-high // self.num_elements)):
            base = copy * self.num_elements
            for stripe in self._stripes(copy):
                start, stop = max(low - base, stripe.start), min(high - base, stripe.stop)
                if start < stop:
                    yield Hop(start, stop, holder, self._carrier(stripe, stripe.first_node), 0, stripe.start)

    def to_worker(self, worker: int) -> Iterator[Hop]:
        """What the worker receives."""
        for stripe, node, passed in self._passing(worker):
            carrier = self._carrier(stripe, node)
            before = self._carrier(stripe, (node - 1) % len(self.nodes))
            for hop in self._from_holders(stripe, worker):
                if carrier != worker:
                    yield hop._replace(sender=carrier, depth=passed + 1)
                elif passed:
                    yield hop._replace(sender=before, depth=passed)
                else:
                    yield hop

    def from_worker(self, worker: int) -> Iterator[Hop]:
        """What the worker hands on."""
        for stripe, node, passed in self._passing(worker):
            if self._carrier(stripe, node) != worker:
                continue
            others = [other for other in self.nodes[node] if other != worker] if self.fanout != "direct" else []
            if passed + 1 < stripe.num_nodes:
                others.insert(0, self._carrier(stripe, (node + 1) % len(self.nodes)))
            for hop in self._from_holders(stripe, worker):
                for other in others:
                    yield hop._replace(sender=worker, receiver=other, depth=passed + 1)

    def _stripes(self, copy: int) -> Iterator[Stripe]:
        """The stripes of one copy, end to end."""
        size, count = self.num_elements, len(self.nodes)
        match self.fanout:
            case "direct":
                node, lane = self._nth_worker(copy)
                yield Stripe(copy, 0, size, node, 1, lane)
            case "node":
                lanes = len(self.nodes[copy])
                for lane in range(lanes):
                    yield Stripe(copy, *_part(size, lane, lanes), copy, 1, lane)
            case "relay" | "all_gather":
                lanes = max(len(workers) for workers in self.nodes)
                firsts = 1 if self.fanout == "relay" else max(1, min(count, size // (lanes * self.min_share)))
                for first in range(firsts):
                    for lane in range(lanes):
                        start, stop = _part(size, first * lanes + lane, firsts * lanes)
                        yield Stripe(copy, start, stop, first * count // firsts, count, lane)

    def _passing(self, worker: int) -> Iterator[tuple[Stripe, int, int]]:
        """(stripe, the worker's node, nodes it passed before) of every stripe that comes to the worker."""
        node = next(node for node, workers in enumerate(self.nodes) if worker in workers)
        match self.fanout:
            case "direct":
                copy = sum(map(len, self.nodes[:node])) + self.nodes[node].index(worker)
            case "node":
                copy = node
            case "relay" | "all_gather":
                copy = 0
        for stripe in self._stripes(copy):
            if stripe.start < stripe.stop:
                yield stripe, node, (node - stripe.first_node) % len(self.nodes)

    def _carrier(self, stripe: Stripe, node: int) -> int:
        workers = self.nodes[node]
        return workers[stripe.lane % len(workers)]

    def _nth_worker(self, number: int) -> tuple[int, int]:
        for node, workers in enumerate(self.nodes):
            if number < len(workers):
                return node, number
            number -= len(workers)
        raise IndexError(number)

    def _num_shares(self) -> int:
        """Holders that send: all, or as many as give each a share worth sending."""
        return max(1, min(self.holders, self.num_copies * self.num_elements // self.min_share))

    def _share(self, holder: int) -> tuple[int, int]:
        """The holder's part of all copies laid end to end; empty for one that does not send."""
        shares = self._num_shares()
        share = -(-holder * shares // self.holders)  # the share of holder floor(share * holders / shares)
        if share == shares or share * self.holders // shares != holder:
            return 0, 0
        return _part(self.num_copies * self.num_elements, share, shares)

    def _from_holders(self, stripe: Stripe, worker: int) -> Iterator[Hop]:
        """The policy's hops that bring a stripe to its first worker."""
        total, shares = self.num_copies * self.num_elements, self._num_shares()
        base = stripe.copy * self.num_elements
        share = (base + stripe.start) * shares // total
        while share < shares:
            low, high = _part(total, share, shares)
            start, stop = max(low - base, stripe.start), min(high - base, stripe.stop)
            if start >= stripe.stop:
                return
            if start < stop:
                yield Hop(start, stop, share * self.holders // shares, worker, 0, stripe.start)
            share += 1


def _part(size: int, index: int, count: int) -> tuple[int, int]:
    """The index-th of `count` even parts of `size` elements."""
    return size * index // count, size * (index + 1) // count
