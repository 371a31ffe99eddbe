"""Which ranks take part in a publication and where they are.

Peers are numbered through: trainer ranks first, then the engines' workers (taker r is peer `world_size + r`; taker r
is tensor rank r % tensor of engine r // tensor).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megarl.parallel.grid import RankGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpeeds:
    """Bytes per second in one direction, per rank, and the latency of one message."""

    inside_node: float
    between_nodes: float
    latency_s: float = 20e-6


NVLINK_AND_INFINIBAND = LinkSpeeds(inside_node=450e9, between_nodes=50e9)
"""An H100 node: NVLink 4 inside, one 400 Gb/s InfiniBand adapter per GPU between nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The trainer's grid, the engines, and the node of every one of their ranks."""

    grid: RankGrid
    engines: int
    tensor: int
    """Tensor-parallel ranks of an engine."""
    trainer_nodes: Sequence[int]
    """Node of each trainer rank."""
    taker_nodes: Sequence[int]
    """Node of each engine worker."""
    links: LinkSpeeds = NVLINK_AND_INFINIBAND

    def __post_init__(self) -> None:
        found = len(self.trainer_nodes), len(self.taker_nodes)
        if found != (self.grid.world_size, self.engines * self.tensor):
            raise ValueError(
                f"expected the nodes of {self.grid.world_size} trainer ranks and {self.engines * self.tensor} engine "
                f"workers, found {found[0]} and {found[1]}"
            )

    @property
    def num_takers(self) -> int:
        return self.engines * self.tensor

    @property
    def num_peers(self) -> int:
        return self.grid.world_size + self.num_takers

    def taker_peer(self, taker: int) -> int:
        return self.grid.world_size + taker

    def describe_peer(self, peer: int) -> str:
        """For messages."""
        if peer < self.grid.world_size:
            return f"policy rank {peer}"
        taker = peer - self.grid.world_size
        return f"engine {taker // self.tensor} worker {taker % self.tensor}"

    def takers_by_node(self, tensor_ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The takers with one of these tensor ranks in their engine, node by node."""
        nodes: dict[int, list[int]] = {}
        for first in range(0, self.num_takers, self.tensor):
            for tensor_rank in tensor_ranks:
                nodes.setdefault(self.taker_nodes[first + tensor_rank], []).append(first + tensor_rank)
        return tuple(map(tuple, nodes.values()))


def pack_nodes(
    *, grid: RankGrid, engines: int, tensor: int, gpus_per_node: int, links: LinkSpeeds = NVLINK_AND_INFINIBAND
) -> Topology:
    """Trainer ranks, then engines, on nodes of `gpus_per_node`, in order; an engine that fits on a node lies on one."""
    trainer_nodes = [rank // gpus_per_node for rank in range(grid.world_size)]
    slot, taker_nodes = grid.world_size, []
    for _ in range(engines):
        room = gpus_per_node - slot % gpus_per_node
        if room < min(tensor, gpus_per_node):
            slot += room
        taker_nodes += [(slot + rank) // gpus_per_node for rank in range(tensor)]
        slot += tensor
    return Topology(
        grid=grid,
        engines=engines,
        tensor=tensor,
        trainer_nodes=trainer_nodes,
        taker_nodes=taker_nodes,
        links=links,
    )
