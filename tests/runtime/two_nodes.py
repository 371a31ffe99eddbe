"""Two raylets on this machine stand for two nodes, and a run's workers are placed on them.

`python -m tests.runtime.two_nodes` prints, as JSON, which node everyone is on and what was refused. Ray's files are
below RAY_TMPDIR.
"""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray's own cluster for tests hands no token on

import ray
from ray.cluster_utils import Cluster

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.runtime import cluster
from megarl.runtime.cluster import ray_cluster, start_worker
from megarl.runtime.node_links import ask_nodes
from megarl.runtime.workers import LIVENESS, TellsStacks, Worker, WorkerName
from megarl.telemetry.process_mark import ProcessMark

CPUS = (3, 2)
"""Of the nodes: a tensor group of 2 and an engine, and another group."""
BLOCKS = ("b2", "b1")
"""Of Slurm's topology, in which the nodes lie."""


class Here(TellsStacks):
    """An actor that knows its node."""

    @ray.method(concurrency_group=LIVENESS)
    def answer(self) -> ProcessMark:
        return ProcessMark.of(os.getpid())

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def make_config(address: str, *, tensor: int = 2) -> RunConfig:
    """Four policy ranks and an engine."""
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"path": "nowhere", "dtype": "float32"},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "random"}},
            "parallel": {"world_size": 4, "tensor": tensor},
            "cluster": {"ray_address": address},
            "train": {"prompts_per_step": 4, "samples_per_prompt": 4, "mini_batch_responses": 8, "steps": 4},
        }
    )


def refusal(config: RunConfig) -> str:
    """Of another run of this configuration."""
    try:
        cluster._reserve(config, num_engines=1, joined=True, given_up=threading.Event())
    except ConfigError as error:
        return str(error)
    return "nothing was refused"


async def place(address: str) -> dict[str, Any]:
    config = make_config(address)
    async with ray_cluster(config, num_engines=1) as placement:
        places = [placement.policy_rank(rank) for rank in range(4)] + [placement.engine(0)]
        names = [WorkerName("policy", rank, Path("/nowhere")) for rank in range(4)]
        names.append(WorkerName("rollout", 0, Path("/nowhere")))
        workers: list[Worker[Here]] = [
            start_worker(name, Here, options, {}) for name, options in zip(names, places, strict=True)
        ]
        found = await asyncio.wait_for(asyncio.gather(*(worker.ask(Here.node) for worker in workers)), 120.0)
        sizes = {node["NodeID"]: int(node["Resources"]["CPU"]) for node in ray.nodes()}
        cluster._PLACEMENT_TIMEOUT_S = 2.0
        return {
            "cpus": [sizes[node] for node in found],
            "full": refusal(config),
            "scattered": refusal(make_config(address, tensor=4)),
            "domains": {sizes[node]: links.domain for node, links in ask_nodes(sizes).items()},
        }


def main() -> int:
    nodes = Cluster()
    try:
        for cpus, block in zip(CPUS, BLOCKS, strict=True):
            topology = {"SLURM_TOPOLOGY_ADDR": f"{block}.n{cpus}", "SLURM_TOPOLOGY_ADDR_PATTERN": "block.node"}
            nodes.add_node(num_cpus=cpus, include_dashboard=False, env_vars=topology)
        print(json.dumps(asyncio.run(place(nodes.address))))
    finally:
        nodes.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
