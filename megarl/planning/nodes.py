"""The nodes that a configuration takes of the cluster it describes, placed as a run places its workers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megarl.config.run import RunConfig
from megarl.parallel.grid import RankGrid
from megarl.planning.placement import PlacementPlan, plan_placement
from megarl.planning.resources import Node, Workers
from megarl.reshard.topology import Topology


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """Policy and engines on as many nodes of cluster.gpus_per_node as they take."""

    config: RunConfig
    nodes: tuple[Node, ...]
    placement: PlacementPlan

    @property
    def num_nodes(self) -> int:
        return self.placement.num_nodes

    @property
    def topology(self) -> Topology:
        """Who is on which node, for the transfer's plan."""
        rollout = self.config.rollout
        return Topology(
            grid=RankGrid.of(self.config.parallel),
            engines=rollout.engines,
            tensor=rollout.tensor,
            policy_nodes=list(self.placement.rank_nodes),
            worker_nodes=[node for node in self.placement.engine_nodes for _ in range(rollout.tensor)],
        )

    def find_problems(self) -> Iterator[str]:
        """A tensor group that no node holds, and more nodes than there are."""
        per_node, tensor = self.config.cluster.gpus_per_node, self.config.parallel.tensor
        if tensor > per_node:
            yield (
                f"parallel.tensor {tensor} is larger than cluster.gpus_per_node {per_node}: a tensor-parallel group "
                "lies on one node. Where NVLink goes from node to node, plan with cluster.gpus_per_node = the GPUs of "
                "an NVLink domain; a run finds out itself"
            )
        if self.num_nodes > self.config.cluster.nodes:
            yield (
                f"policy and engines take {self.num_nodes} nodes of {per_node} GPUs, since a tensor group of "
                f"parallel.tensor {tensor} and an engine of rollout.tensor {self.config.rollout.tensor} lie on one "
                f"node each, but cluster.nodes is {self.config.cluster.nodes}; raise it, or choose a policy that "
                "leaves whole engines free"
            )


def place_run(config: RunConfig) -> PlacedRun:
    """Place a configuration, on however many nodes it takes; `find_problems` says what is wrong with that."""
    per_node, parallel, rollout = config.cluster.gpus_per_node, config.parallel, config.rollout
    groups_per_node = per_node // parallel.tensor
    if groups_per_node:
        count = math.ceil(parallel.world_size // parallel.tensor / groups_per_node)
    else:
        count = math.ceil(parallel.world_size / per_node)
    count += math.ceil(rollout.engines / (per_node // rollout.tensor))
    domain = "" if groups_per_node else "all"  # a plan to count nodes by, whose problem is told
    free = {"CPU": 2.0 * per_node, "GPU": float(per_node)}
    nodes = tuple(Node(str(index), free, domain=domain) for index in range(count))
    workers = Workers.of(config, engines=rollout.engines, on_gpu=True)
    return PlacedRun(config, nodes, plan_placement(nodes, workers))


def nodes_needed(config: RunConfig) -> int:
    """Nodes that a configuration takes, however many it names."""
    return place_run(config).num_nodes
