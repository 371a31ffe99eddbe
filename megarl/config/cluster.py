"""The machines of a run, and who shares their GPUs."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from megarl.config.base import Config

Moved = Literal["optimizer", "reference"]
"""What of the policy may move to host memory while engines use its GPUs."""


class ClusterConfig(Config):
    """Machines of the run."""

    nodes: int = Field(1, ge=1)
    """Machines."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of a node; without CUDA the number of workers it may hold."""
    colocate: bool = False
    """Policy ranks and engines on the same GPUs, in turns: engines give back their memory and sleep while the policy
    trains; the policy gives back its gradients, and what `offload` says, while engines sample. Each engine shares the
    GPUs of neighbouring policy ranks of one node; without `rollout.engines` there are as many as these GPUs hold. On a
    CPU the turns are the same, but vLLM's CPU build has no sleep mode: its engines keep their memory."""
    offload: list[Moved] | None = None
    """With `colocate`, what of the policy is kept in host memory while engines sample: "optimizer" (moments and float32
    main weights), "reference" (the frozen weights of a KL). Absent: as little as leaves the engines
    `rollout.memory_fraction` of each GPU by the arithmetic of `megarl plan`; without a GPU both."""
    ray_address: str | None = None
    """Join a running Ray cluster ("auto" or host:port) instead of starting one on this machine."""
    worker_silence_s: float = Field(120.0, gt=0)
    """A worker whose process does not answer for this long, because it is stopped or its machine is gone, ends the run
    with its name. Workers answer beside their work, however long that takes."""
    restarts: int = Field(5, ge=0)
    """A run that saves itself (`[checkpoint]`) goes on by itself when a worker has died, hangs or has met an error of
    its machine: all its processes end, and after a pause it goes on from its newest checkpoint, so many times at most,
    and not when one step fails twice in one way. 0: it ends, as it does after all that would only repeat itself. Under
    `megarl submit` it is 0, because the job's script does this, where it must on other nodes."""
    restart_pause_s: float = Field(60.0, ge=0)
    """Before the first of those; twice as long before each other one, an hour at most."""


def fill_with_engines(values: Any) -> Any:
    """A run's values as they were read, with `rollout.engines` where it is absent and engines share the policy's GPUs:
    as many as these hold. What is wrong with the values is found by their own checks."""
    if not isinstance(values, Mapping):
        return values
    sections = [values.get(name, {}) for name in ("cluster", "parallel", "rollout")]
    if not all(isinstance(section, Mapping) for section in sections):
        return values
    cluster, parallel, rollout = sections
    gpus, tensor = parallel.get("world_size", 1), rollout.get("tensor", 1)
    if cluster.get("colocate") is not True or "engines" in rollout or type(gpus) is not int or type(tensor) is not int:
        return values
    return {**values, "rollout": {**rollout, "engines": max(1, gpus // max(1, tensor))}}


def find_allocator_problem(environment: Mapping[str, str]) -> str | None:
    """What of a process's environment keeps GPUs from being shared; None where nothing does."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        for entry in environment.get(name, "").split(","):
            key, _, value = entry.partition(":")
            if key.strip() == "expandable_segments" and value.strip().lower() in ("true", "1"):
                return (
                    f"{name} has expandable_segments on: vLLM's sleeping allocator cannot give such memory back, and "
                    "CUDA IPC cannot share it; with cluster.colocate leave it out"
                )
            if key.strip() == "backend" and value.strip() == "cudaMallocAsync":
                return (
                    f"{name} has backend:cudaMallocAsync: vLLM's sleeping allocator does not work on top of it, and "
                    "CUDA IPC cannot share its memory; with cluster.colocate leave it out"
                )
    return None
