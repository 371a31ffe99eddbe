"""The transfer plan: which ranges of which blocks a rank sends and receives, in which order.

`plan_policy_rank` and `plan_engine_worker` are pure functions of the layouts. Each computes its part only: nothing is
asked of other ranks, and the work does not grow with their number but by the copies a rank itself handles.

Invariants: all workers together receive every wanted element exactly once each; messages of all ranks have one order,
in which a message comes after those that bring its sender the data, so that ranks which work through their own parts
in that order cannot wait for each other in a circle.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from megarl.models.boxes import Box
from megarl.reshard.blocks import (
    Block,
    BlockKey,
    Holding,
    LayoutError,
    WantedBoxes,
    cut_source_blocks,
    cut_target_blocks,
)
from megarl.reshard.cost import Load, choose_fanout, estimate_seconds, measure_load
from megarl.reshard.fanout import Fanout, Hop, Spread
from megarl.reshard.regions import Region
from megarl.reshard.topology import Topology

_MIN_SHARE_BYTES = 1 << 22

NUM_SLOTS = 2
"""Packed messages a policy rank has in memory: one travels while the next is packed."""

Place = tuple[BlockKey, int, int]
"""Elements [start, stop) of a block."""


class Message(NamedTuple):
    """Elements [start, stop) of a block from peer to peer in one contiguous buffer. Sorts in the order of all."""

    bucket: int
    depth: int
    block: BlockKey
    start: int
    stop: int
    receiver: int
    sender: int

    @property
    def place(self) -> Place:
        return self.block, self.start, self.stop

    @property
    def num_elements(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan:
    """One peer's part of a publication."""

    peer: int
    itemsize: int
    fanout: Fanout
    blocks: Mapping[BlockKey, Block]
    """Those the peer sends from its own parameters or receives."""
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]
    bound_elements: int
    """The fewest elements this peer can receive: what it wants (0 on the policy)."""
    estimated_s: float
    """Seconds on the topology's links."""

    @property
    def bytes_sent(self) -> int:
        return sum(message.num_elements for message in self.sends) * self.itemsize

    @property
    def bytes_received(self) -> int:
        return sum(message.num_elements for message in self.receives) * self.itemsize

    @property
    def received_over_bound(self) -> float:
        """Bytes received over the fewest possible: 1.0 when nothing comes twice."""
        return self.bytes_received / (self.bound_elements * self.itemsize) if self.bound_elements else 1.0

    @property
    def num_buckets(self) -> int:
        """Buckets in which the messages come, over all blocks."""
        return len({(message.block, message.bucket) for message in (*self.sends, *self.receives)})


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What every peer knows before it plans."""

    wanted: WantedBoxes
    topology: Topology
    itemsize: int
    """Bytes of an element on the wire."""
    bucket_bytes: int
    fanout: Fanout | None = None
    """None: the one with the lowest estimate."""

    def __post_init__(self) -> None:
        if self.wanted.tensor_size != self.topology.tensor:
            raise LayoutError(
                f"{self.wanted.tensor_size} tensor ranks of an engine described, the topology has "
                f"{self.topology.tensor}"
            )
        if self.bucket_bytes < self.itemsize:
            raise ValueError(f"a bucket of {self.bucket_bytes} bytes holds no element of {self.itemsize}")

    @cached_property
    def load(self) -> Load:
        """The figures the fan-out is chosen by."""
        return measure_load(
            self.wanted,
            self.topology,
            itemsize=self.itemsize,
            bucket_bytes=self.bucket_bytes,
            min_share_bytes=_MIN_SHARE_BYTES,
        )


def plan_policy_rank(request: PlanRequest, holdings: Iterable[Holding], *, rank: int) -> TransferPlan:
    """The plan of policy rank `rank`, which is a holder of all `holdings`; ValueError where it is not."""
    blocks = [block for holding in holdings for block in cut_source_blocks(holding, request.wanted)]
    planner = _Planner(request)
    sends = [
        message
        for block in blocks
        for message in planner.messages(block.key, planner.spread(block).from_holder(block.key.holders.index_of(rank)))
    ]
    return planner.plan(rank, blocks, sends=sends, receives=(), bound_elements=0)


def plan_engine_worker(
    request: PlanRequest, holdings: Iterable[Holding], targets: Mapping[Box, tuple[Region, ...]], *, worker: int
) -> TransferPlan:
    """The plan of engine worker `worker`, whose parameters want `targets`, of all the policy's `holdings`.

    Raises:
        LayoutError: the policy does not hold every wanted element.
    """
    blocks = cut_target_blocks(
        targets,
        request.wanted,
        tensor_rank=worker % request.topology.tensor,
        holdings=holdings,
    )
    planner = _Planner(request)
    sends: list[Message] = []
    receives: list[Message] = []
    for block in blocks:
        spread = planner.spread(block)
        receives += planner.messages(block.key, spread.to_worker(worker))
        sends += planner.messages(block.key, spread.from_worker(worker))
    return planner.plan(
        request.topology.worker_peer(worker),
        blocks,
        sends=sends,
        receives=receives,
        bound_elements=sum(box.num_elements for box in targets),
    )


class _Planner:
    """What the blocks of one plan share."""

    def __init__(self, request: PlanRequest) -> None:
        self._request = request
        self._topology = request.topology
        self._bucket_elements = request.bucket_bytes // request.itemsize
        load = request.load
        self._fanout = request.fanout or choose_fanout(load, self._topology)
        self._estimated_s = estimate_seconds(load, self._fanout, self._topology)
        self._nodes: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}

    def spread(self, block: Block) -> Spread:
        workers = block.key.wanted_by
        if workers not in self._nodes:
            self._nodes[workers] = self._topology.workers_by_node(workers)
        return Spread(
            fanout=self._fanout,
            num_elements=block.num_elements,
            nodes=self._nodes[workers],
            holders=block.key.holders.num,
            min_share=max(1, _MIN_SHARE_BYTES // self._request.itemsize),
        )

    def messages(self, key: BlockKey, hops: Iterable[Hop]) -> Iterator[Message]:
        """The hops in buckets, cut alike wherever a stripe passes."""
        for hop in hops:
            yield from _in_buckets(self._message(key, hop), hop.base, self._bucket_elements)

    def _message(self, key: BlockKey, hop: Hop) -> Message:
        sender = self._topology.worker_peer(hop.sender) if hop.depth else key.holders.rank(hop.sender)
        return Message(0, hop.depth, key, hop.start, hop.stop, self._topology.worker_peer(hop.receiver), sender)

    def plan(
        self,
        peer: int,
        blocks: Iterable[Block],
        *,
        sends: Iterable[Message],
        receives: Iterable[Message],
        bound_elements: int,
    ) -> TransferPlan:
        return TransferPlan(
            peer=peer,
            itemsize=self._request.itemsize,
            fanout=self._fanout,
            blocks={block.key: block for block in blocks},
            sends=tuple(sorted(sends)),
            receives=tuple(sorted(receives)),
            bound_elements=bound_elements,
            estimated_s=self._estimated_s,
        )


def _in_buckets(message: Message, base: int, size: int) -> Iterator[Message]:
    """Cut at multiples of `size` elements from `base`, numbered from there: stripes side by side advance together."""
    for bucket in range((message.start - base) // size, -((base - message.stop) // size)):
        low = base + bucket * size
        yield message._replace(bucket=bucket, start=max(message.start, low), stop=min(message.stop, low + size))
