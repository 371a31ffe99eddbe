"""Where ranks are put, and what they are called."""

import dataclasses

import pytest

from megarl.parallel.grid import RankGrid
from megarl.reshard.topology import pack_nodes


@pytest.mark.parametrize(
    ("policy", "engines", "tensor", "gpus_per_node", "worker_nodes"),
    [
        (3, 2, 2, 4, [1, 1, 1, 1]),  # the free place on node 0 is too small for an engine
        (2, 3, 2, 4, [0, 0, 1, 1, 1, 1]),
        (4, 2, 3, 4, [1, 1, 1, 2, 2, 2]),
        (2, 1, 8, 4, [1, 1, 1, 1, 2, 2, 2, 2]),  # larger than a node: on whole nodes
        (2, 2, 2, 1, [2, 3, 4, 5]),
    ],
)
def test_pack_nodes(policy: int, engines: int, tensor: int, gpus_per_node: int, worker_nodes: list[int]) -> None:
    grid = RankGrid(tensor=1, pipeline=1, data=policy)
    topology = pack_nodes(grid=grid, engines=engines, tensor=tensor, gpus_per_node=gpus_per_node)
    assert topology.policy_nodes == [rank // gpus_per_node for rank in range(policy)]
    assert topology.worker_nodes == worker_nodes


def test_topology_numbers_and_names_its_peers() -> None:
    grid = RankGrid(tensor=2, pipeline=1, data=1)
    topology = pack_nodes(grid=grid, engines=3, tensor=2, gpus_per_node=4)  # nodes: policy + engine 0, engines 1 + 2
    assert (topology.num_workers, topology.num_peers, topology.worker_peer(5)) == (6, 8, 7)
    assert topology.describe_peer(1) == "policy rank 1"
    assert topology.describe_peer(7) == "engine 2 worker 1"
    assert topology.workers_by_node((0, 1)) == ((0, 1), (2, 3, 4, 5))
    assert topology.workers_by_node((1,)) == ((1,), (3, 5))
    spanning = pack_nodes(grid=grid, engines=2, tensor=2, gpus_per_node=1)
    assert spanning.workers_by_node((0, 1)) == ((0,), (1,), (2,), (3,))
    with pytest.raises(ValueError, match="2 policy ranks and 6 engine workers, found 2 and 5"):
        dataclasses.replace(topology, worker_nodes=[0] * 5)
