"""What nodes are linked to, as Slurm and their GPUs tell it: asked on every node, by a Ray task.

Slurm's topology plugins give each process of a job step SLURM_TOPOLOGY_ADDR and _PATTERN: "top.leaf3.n17" and
"switch.switch.node", or "b8.n17" and "block.node" (`topology_p_get_node_addr` of topology/tree and topology/block,
where blocks describe NVLink domains). They must have been left in the environment that Ray was started in. NVML gives
the fabric that a GPU's NVLinks belong to; of a fabric that ends at the node the UUID is zero (as NCCL reads it).
"""

import logging
import os
from collections.abc import Iterable, Mapping
from ctypes import byref
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray._private.thirdparty import pynvml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megarl.runtime.leftovers import process_marks

_ASK_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeLinks:
    """Of one node; the fields of `planning.resources.Node`."""

    switches: tuple[str, ...] = ()
    domain: str = ""


def read_links(environment: Mapping[str, str], *, fabric: str | None) -> NodeLinks:
    """From the environment of a process of a Slurm job step, and what the GPUs say (`read_fabric`), who know better
    than Slurm's blocks how far their NVLinks go."""
    names = environment.get("SLURM_TOPOLOGY_ADDR", "").split(".")
    kinds = environment.get("SLURM_TOPOLOGY_ADDR_PATTERN", "").split(".")
    # A node's own name may have dots, and ends the address.
    above = list(zip(names, kinds, strict=False))[: kinds.index("node") if "node" in kinds else 0]
    if fabric is None:
        fabric = next((f"block {name}" for name, kind in above if kind == "block"), "")
    return NodeLinks(switches=tuple(name for name, _ in above), domain=fabric)


def read_fabric(nvml: Any = pynvml) -> str | None:
    """The NVLink fabric that all GPUs of this node belong to; "" where their links end at the node, or they are of
    several; None where no driver says."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        found = {_fabric_of(nvml, index) for index in range(nvml.nvmlDeviceGetCount())}
    except nvml.NVMLError:  # a driver or GPUs from before there were fabrics
        return None
    finally:
        nvml.nvmlShutdown()
    return found.pop() if len(found) == 1 else "" if found else None


def _fabric_of(nvml: Any, index: int) -> str:
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    nvml.nvmlDeviceGetGpuFabricInfoV(nvml.nvmlDeviceGetHandleByIndex(index), byref(info))
    uuid = bytes(info.clusterUuid)
    ready = info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED and info.status == nvml.NVML_SUCCESS
    return f"fabric {uuid.hex()}.{info.cliqueId}" if ready and any(uuid) else ""


def ask_nodes(ray_ids: Iterable[str]) -> dict[str, NodeLinks]:
    """By Ray's name of the node; blocks. A node that does not answer has no links that are known, which is logged."""
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": process_marks()})(_read_here)
    asked = {
        ray_id: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(ray_id, soft=False)).remote()
        for ray_id in ray_ids
    }
    done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ASK_TIMEOUT_S)
    found = {}
    for ray_id, reference in asked.items():
        try:
            found[ray_id] = ray.get(reference) if reference in done else None
        except ray.exceptions.RayError as error:
            _log.info("node %s: %s", ray_id, error)
            found[ray_id] = None
    if silent := [ray_id for ray_id, links in found.items() if links is None]:
        _log.warning("nodes %s did not say what they are linked to; they are placed by their names", ", ".join(silent))
    return {ray_id: links or NodeLinks() for ray_id, links in found.items()}


def _read_here() -> NodeLinks:
    return read_links(os.environ, fabric=read_fabric())
