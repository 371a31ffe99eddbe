"""Which GPUs the processes of a run see where policy and engines share them (cluster.colocate).

Ray gives a policy rank one GPU, and an engine half of its first; no fraction of it is more than one. So Ray is told to
leave CUDA_VISIBLE_DEVICES alone, and it is set here: a process's own GPUs come first, so that local device numbers are
what they are elsewhere, then the run's others of its node, which CUDA IPC between two GPUs needs to be visible.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray

UNSET = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""For the environment of every such process: Ray assigns a GPU and sets nothing."""


@dataclass(frozen=True, slots=True)
class GpuPlace:
    """The GPU that Ray gave a policy rank."""

    node: str
    """Ray's name of the node."""
    gpu: str
    """As CUDA_VISIBLE_DEVICES names it on that node."""


def find_own_gpu() -> GpuPlace:
    """Of the actor that asks. RuntimeError where Ray gave it none, or several."""
    context = ray.get_runtime_context()
    found = context.get_accelerator_ids()["GPU"]
    if len(found) != 1:
        raise RuntimeError(f"expected one GPU of Ray for a policy rank that shares it, found {found or 'none'}")
    return GpuPlace(context.get_node_id(), found[0])


def visible_gpus(places: Sequence[GpuPlace], ranks: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES of a process on the GPUs of these policy ranks; places: of all ranks, in their order."""
    own = [places[rank] for rank in ranks]
    nodes = {place.node for place in own}
    if len(nodes) != 1:
        raise ValueError(
            f"the GPUs of policy ranks {list(ranks)} lie on {len(nodes)} nodes; a process has those of one"
        )
    others = sorted((place for place in places if place.node in nodes and place not in own), key=_by_number)
    return ",".join(place.gpu for place in (*own, *others))


def see_gpus(visible: str) -> None:
    """In the process itself, before it asks CUDA for anything, which reads this once."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _by_number(place: GpuPlace) -> tuple[int, str]:
    return (int(place.gpu), "") if place.gpu.isdigit() else (-1, place.gpu)
