"""Which ranks take part in a publication and where they are.

Peers are numbered through: policy ranks first, then the engines' workers (worker r is peer `world_size + r`; worker r
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
    """The policy's grid, the engines, and the node of every one of their ranks."""

    grid: RankGrid
    engines: int
    tensor: int
    """Tensor-parallel ranks of an engine."""
    policy_nodes: Sequence[int]
    """Node of each policy rank."""
    worker_nodes: Sequence[int]
    """Node of each engine worker."""
    links: LinkSpeeds = NVLINK_AND_INFINIBAND

    def __post_init__(self) -> None:
        found = len(self.policy_nodes), len(self.worker_nodes)
        if found != (self.grid.world_size, self.engines * self.tensor):
            raise ValueError(
                f"expected the nodes of {self.grid.world_size} policy ranks and {self.engines * self.tensor} engine "
                f"workers, found {found[0]} and {found[1]}"
            )

    @property
    def num_workers(self) -> int:
        return self.engines * self.tensor

    @property
    def num_peers(self) -> int:
        return self.grid.world_size + self.num_workers

    def worker_peer(self, worker: int) -> int:
        return self.grid.world_size + worker

    def describe_peer(self, peer: int) -> str:
        """For messages."""
        if peer < self.grid.world_size:
            return f"policy rank {peer}"
        worker = peer - self.grid.world_size
        return f"engine {worker // self.tensor} worker {worker % self.tensor}"

    def workers_by_node(self, tensor_ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The workers with one of these tensor ranks in their engine, node by node."""
        nodes: dict[int, list[int]] = {}
        for first in range(0, self.num_workers, self.tensor):
            for tensor_rank in tensor_ranks:
                nodes.setdefault(self.worker_nodes[first + tensor_rank], []).append(first + tensor_rank)
        return tuple(map(tuple, nodes.values()))


def pack_nodes(
    *, grid: RankGrid, engines: int, tensor: int, gpus_per_node: int, links: LinkSpeeds = NVLINK_AND_INFINIBAND
) -> Topology:
    """Policy ranks, then engines, on nodes of `gpus_per_node`, in order; an engine that fits on a node lies on one."""
    policy_nodes = [rank // gpus_per_node for rank in range(grid.world_size)]
    slot, worker_nodes = grid.world_size, []
    for _ in range(engines):
        room = gpus_per_node - slot % gpus_per_node
        if room < min(tensor, gpus_per_node):
            slot += room
        worker_nodes += [(slot + rank) // gpus_per_node for rank in range(tensor)]
        slot += tensor
    return Topology(
        grid=grid,
        engines=engines,
        tensor=tensor,
        policy_nodes=policy_nodes,
        worker_nodes=worker_nodes,
        links=links,
    )
