"""The transfer plan of a layout in a few numbers, for thousands of ranks without planning each.

Policy ranks that differ only in their data replica hold the same and share what they send evenly, and all inner
pipeline stages look alike; so one rank is planned for every tensor position of the first, an inner and the last stage.
What a worker receives is what it wants, once (the plan's invariant); the worker that wants most is planned and shows
it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megarl.config.rollout import PublishConfig
from megarl.models.boxes import Box
from megarl.models.serving import engine_boxes
from megarl.models.shape import ModelShape
from megarl.planning.policy_memory import distinct_stages
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.cost import Load, choose_fanout, estimate_seconds
from megarl.reshard.fanout import FANOUTS, Fanout, Spread
from megarl.reshard.plan import NUM_SLOTS, PlanRequest, TransferPlan, plan_engine_worker, plan_policy_rank
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import NVLINK_AND_INFINIBAND, LinkSpeeds, Topology

LINKS = {
    "NVLink + InfiniBand": NVLINK_AND_INFINIBAND,
    "NVLink": LinkSpeeds(inside_node=NVLINK_AND_INFINIBAND.inside_node, between_nodes=450e9),
}
"""Between nodes: one 400 Gb/s adapter per GPU, or NVLink throughout (one rack-scale NVLink domain)."""


CHECK_BYTES = 64 << 20
"""Of a checksum on a GPU: the products of the words that it takes at once (reshard/checksum.py)."""


def sending_bytes(publish: PublishConfig) -> int:
    """On a policy GPU: packed messages; where workers read the parameters themselves, one at a time and its check."""
    bucket = publish.bucket_mib << 20
    return bucket + CHECK_BYTES if publish.staging == "none" else NUM_SLOTS * bucket


def reading_bytes(publish: PublishConfig) -> int:
    """On a GPU that an engine shares: the message that it packs out of the policy's parameters, and its check."""
    return (publish.bucket_mib << 20) + CHECK_BYTES if publish.staging == "none" else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one publication of the weights moves."""

    model_bytes: int
    """Of the checkpoint's tensors, in the dtype on the wire."""
    sent_max_bytes: int
    """By one policy rank."""
    sent_mean_bytes: float
    """Over all policy ranks."""
    sent_least_bytes: float
    """Per policy rank if every element left the policy once, evenly."""
    received_max_bytes: int
    """By one engine worker."""
    received_mean_bytes: float
    received_over_bound: float
    """Received over what the worker holds: 1.0 when nothing comes twice."""
    handed_on_bytes: int
    """Sent on to other workers by the planned worker."""
    policy_messages: int
    """Most messages that a planned policy rank sends."""
    worker_messages: int
    """Messages that the planned worker receives and hands on."""
    buckets: int
    """Buckets in which they come to it."""
    fanout: Fanout
    """The planned one: fastest on NVLink + InfiniBand, or direct within shared memory."""
    estimates: dict[str, dict[str, float]]
    """Seconds, by links and fan-out."""
    fastest: dict[str, Fanout]
    """By links."""


def plan_publication(
    shape: ModelShape, topology: Topology, *, itemsize: int, bucket_bytes: int, shared_memory: bool
) -> Publication:
    """Plan a publication over the topology. Raises ModelError where policy or engines do not split the model."""
    boxes = [engine_boxes(shape, tensor_rank=rank, tensor_size=topology.tensor) for rank in range(topology.tensor)]
    wanted = WantedBoxes(boxes)
    plain = PlanRequest(wanted=wanted, topology=topology, itemsize=itemsize, bucket_bytes=bucket_bytes)
    load = plain.load
    fanout: Fanout = "direct" if shared_memory else choose_fanout(load, topology)
    request = replace(plain, fanout=fanout)
    layout = PolicyLayout(shape=shape, grid=topology.grid)
    policy_ranks = list(_plan_policy_ranks(request, layout))
    held = [sum(box.num_elements for box in of_rank) * itemsize for of_rank in boxes]
    worker = _plan_worker(request, layout, boxes, rank=held.index(max(held)))
    model_bytes = wanted.distinct_elements(range(topology.tensor)) * itemsize
    sent = sum(count * _bytes_of_position(request, plan) for plan, count in policy_ranks)
    return Publication(
        model_bytes=model_bytes,
        sent_max_bytes=max(plan.bytes_sent for plan, _ in policy_ranks),
        sent_mean_bytes=sent / topology.grid.world_size,
        sent_least_bytes=model_bytes / topology.grid.world_size,
        received_max_bytes=worker.bytes_received,
        received_mean_bytes=sum(held) / len(held),
        received_over_bound=worker.received_over_bound,
        handed_on_bytes=worker.bytes_sent,
        policy_messages=max(len(plan.sends) for plan, _ in policy_ranks),
        worker_messages=len(worker.receives) + len(worker.sends),
        buckets=worker.num_buckets,
        fanout=fanout,
        estimates=_estimate(load, topology),
        fastest={name: choose_fanout(load, replace(topology, links=links)) for name, links in LINKS.items()},
    )


def _estimate(load: Load, topology: Topology) -> dict[str, dict[str, float]]:
    """Seconds, by links and fan-out."""
    return {
        name: {fanout: estimate_seconds(load, fanout, replace(topology, links=links)) for fanout in FANOUTS}
        for name, links in LINKS.items()
    }


def _plan_policy_ranks(request: PlanRequest, layout: PolicyLayout) -> Iterator[tuple[TransferPlan, int]]:
    """The plan of the first replica's rank of every distinct position, and how many stages have it."""
    grid = request.topology.grid
    for stage in distinct_stages(grid.pipeline):
        inner = 0 < stage < grid.pipeline - 1
        for tensor in range(grid.tensor):
            holding = layout.holding(pipeline=stage, tensor=tensor)
            yield plan_policy_rank(request, [holding], rank=holding.holders.first), grid.pipeline - 2 if inner else 1


def _bytes_of_position(request: PlanRequest, plan: TransferPlan) -> int:
    """What all ranks of a policy position send together."""
    total = 0
    for key, block in plan.blocks.items():
        nodes = request.topology.workers_by_node(key.wanted_by)
        spread = Spread(fanout=plan.fanout, num_elements=block.num_elements, nodes=nodes, holders=1, min_share=1)
        total += spread.num_copies * block.num_elements
    return total * request.itemsize


def _plan_worker(
    request: PlanRequest, layout: PolicyLayout, boxes: list[tuple[Box, ...]], *, rank: int
) -> TransferPlan:
    """The plan of tensor rank `rank` of the first engine, whose parameters are taken to be one box each."""
    targets = {box: (Region(box.tensor, 0, contiguous_strides(box.shape)),) for box in boxes[rank]}
    return plan_engine_worker(request, layout.holdings(), targets, worker=rank)
