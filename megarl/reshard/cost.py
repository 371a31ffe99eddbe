"""How long a publication takes on given links, and which fan-out takes least.

The model: every rank sends and receives at its link's speed at once, between nodes over its own network adapter, and
hops follow each other by buckets. A lower figure than reality; the fan-outs are compared by it, not promised.
"""

from dataclasses import dataclass

from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.fanout import FANOUTS, Fanout
from megarl.reshard.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the estimate needs to know of a publication, in bytes."""

    policy_rank: int
    """The most a policy rank has to send for one copy to one engine, shared among its replicas."""
    worker: int
    """The most a worker receives."""
    node: int
    """Distinct bytes an engine node needs."""
    num_nodes: int
    workers_per_node: int
    """Workers that share a node's network."""
    engines: int
    crosses_nodes: bool
    """Policy and engines are on different nodes."""
    bucket: int
    min_share: int
    """The smallest stripe."""


def measure_load(
    wanted: WantedBoxes, topology: Topology, *, itemsize: int, bucket_bytes: int, min_share_bytes: int
) -> Load:
    """The figures of a layout; policy positions are taken to hold equal parts of the model."""
    nodes = topology.workers_by_node(range(topology.tensor))
    tensor_ranks = {worker % topology.tensor for worker in max(nodes, key=len)}
    model = wanted.distinct_elements(range(topology.tensor)) * itemsize
    return Load(
        policy_rank=model // topology.grid.world_size,
        worker=max(map(wanted.elements, range(topology.tensor))) * itemsize,
        node=wanted.distinct_elements(tensor_ranks) * itemsize,
        num_nodes=len(nodes),
        workers_per_node=max(map(len, nodes)),
        engines=topology.engines,
        crosses_nodes=set(topology.policy_nodes) != set(topology.worker_nodes) or len(nodes) > 1,
        bucket=bucket_bytes,
        min_share=min_share_bytes,
    )


def estimate_seconds(load: Load, fanout: Fanout, topology: Topology) -> float:
    """Seconds from the first byte sent to the last received."""
    links = topology.links
    network = links.between_nodes if load.crosses_nodes else links.inside_node
    stripe = load.node / load.workers_per_node
    exchange = (load.worker - min(stripe, load.worker)) / links.inside_node
    last = load.num_nodes - 1
    match fanout:
        case "direct":
            return links.latency_s + max(load.engines * load.policy_rank, load.worker) / network
        case "node":
            copies = min(load.engines, load.num_nodes)
            return 2 * links.latency_s + max(copies * load.policy_rank, stripe) / network + exchange
        case "relay":
            fill = last * (links.latency_s + min(load.bucket, stripe) / network)
            return 2 * links.latency_s + max(load.policy_rank, stripe) / network + fill + exchange
        case "all_gather":
            # Stripes smaller than worth sending are not made: then fewer nodes start, and the others wait.
            uneven = max(0.0, load.num_nodes * min(stripe, max(stripe / load.num_nodes, load.min_share)) - stripe)
            fill = last * links.latency_s + uneven / network
            return 2 * links.latency_s + max(load.policy_rank, stripe) / network + fill + exchange


def choose_fanout(load: Load, topology: Topology) -> Fanout:
    """The fan-out with the lowest estimate, the plainest of equals."""
    return min(FANOUTS, key=lambda fanout: estimate_seconds(load, fanout, topology))
