"""A publication in a few numbers against the plans of all its ranks."""

from typing import Any

import pytest

from megarl.models.serving import engine_boxes
from megarl.parallel.grid import RankGrid
from megarl.planning.transfer import plan_publication
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.plan import PlanRequest, plan_engine_worker, plan_policy_rank
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import pack_nodes
from tests.models.shapes import make_shape


@pytest.mark.parametrize(("engines", "tensor", "per_node"), [(1, 1, 8), (2, 2, 2), (3, 1, 4), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("shared_memory", [False, True])
def test_publication_agrees_with_the_plans_of_all_ranks(
    engines: int, tensor: int, per_node: int, shared_memory: bool
) -> None:
    # Large enough for replicas to share.
    shape = make_shape(num_layers=4, hidden_size=1024, ffn_size=2048, head_dim=64, vocab_size=1000)
    grid = RankGrid(tensor=2, pipeline=4, data=2)
    topology = pack_nodes(grid=grid, engines=engines, tensor=tensor, gpus_per_node=per_node)
    found = plan_publication(shape, topology, itemsize=2, bucket_bytes=1 << 20, shared_memory=shared_memory)
    boxes = [engine_boxes(shape, tensor_rank=rank, tensor_size=tensor) for rank in range(tensor)]
    request = PlanRequest(
        wanted=WantedBoxes(boxes), topology=topology, itemsize=2, bucket_bytes=1 << 20, fanout=found.fanout
    )
    assert shared_memory or found.fanout == found.fastest["NVLink + InfiniBand"]
    layout = PolicyLayout(shape=shape, grid=grid)
    policy_ranks = [plan_policy_rank(request, layout.held_by(rank), rank=rank) for rank in range(grid.world_size)]
    sent = [plan.bytes_sent for plan in policy_ranks]
    assert found.sent_mean_bytes == sum(sent) / len(sent)
    blocks = max(len(plan.blocks) for plan in policy_ranks)
    assert max(sent) - 2 * blocks <= found.sent_max_bytes <= max(sent)  # an element a block is rounding
    workers = [plan_worker(request, layout, boxes, worker) for worker in range(topology.num_workers)]
    received = [plan.bytes_received for plan in workers]
    assert found.received_max_bytes == max(received)
    assert found.received_mean_bytes == sum(received) / len(received)
    assert found.received_over_bound == max(plan.received_over_bound for plan in workers) == 1.0
    assert found.model_bytes == 2 * sum(box.num_elements for box in engine_boxes(shape, tensor_rank=0, tensor_size=1))


def plan_worker(request: PlanRequest, layout: PolicyLayout, boxes: list[Any], worker: int) -> Any:
    targets = {
        box: (Region(box.tensor, 0, contiguous_strides(box.shape)),) for box in boxes[worker % request.topology.tensor]
    }
    return plan_engine_worker(request, layout.holdings(), targets, worker=worker)
