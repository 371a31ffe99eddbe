"""What Slurm's variables and the GPUs' driver say of a node's links. Needs no Ray, no Slurm and no GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.thirdparty import pynvml

from megarl.runtime.node_links import NodeLinks, read_fabric, read_links

UUID = bytes(range(16))


def slurm(address: str, pattern: str) -> dict[str, str]:
    return {"SLURM_TOPOLOGY_ADDR": address, "SLURM_TOPOLOGY_ADDR_PATTERN": pattern}


@pytest.mark.parametrize(
    ("environment", "fabric", "expected"),
    [
        # topology/tree: switches are no NVLinks.
        (slurm("top.leaf3.n17", "switch.switch.node"), None, NodeLinks(("top", "leaf3"), "")),
        # topology/block: the block is an NVLink domain, unless the GPUs say otherwise.
        (slurm("b8.n17", "block.node"), None, NodeLinks(("b8",), "block b8")),
        (slurm("b8.n17", "block.node"), "", NodeLinks(("b8",), "")),
        (slurm("b8.n17", "block.node"), "fabric 07.1", NodeLinks(("b8",), "fabric 07.1")),
        # No topology plugin, a node whose name has dots, no Slurm at all.
        (slurm("n17", "node"), None, NodeLinks()),
        (slurm("leaf3.n17.cluster.org", "switch.node"), None, NodeLinks(("leaf3",), "")),
        ({}, None, NodeLinks()),
        ({}, "fabric 07.1", NodeLinks((), "fabric 07.1")),
        ({"SLURM_TOPOLOGY_ADDR": "b8.n17"}, None, NodeLinks()),
    ],
)
def test_links_of_a_node(environment: dict[str, str], fabric: str | None, expected: NodeLinks) -> None:
    assert read_links(environment, fabric=fabric) == expected


def driver(*gpus: tuple[bytes, int, int], fails: str = "") -> Any:
    """NVML as far as it is asked, of GPUs with (UUID, clique, state) of their fabric."""

    def call(name: str, result: Any = None) -> Any:
        if fails == name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return result

    def info_of(handle: int, reference: Any) -> None:
        call("nvmlDeviceGetGpuFabricInfoV")
        info = reference._obj
        uuid, info.cliqueId, info.state = gpus[handle]
        info.clusterUuid[:] = uuid

    return SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        NVML_SUCCESS=pynvml.NVML_SUCCESS,
        NVML_GPU_FABRIC_STATE_COMPLETED=pynvml.NVML_GPU_FABRIC_STATE_COMPLETED,
        c_nvmlGpuFabricInfo_v2_t=pynvml.c_nvmlGpuFabricInfo_v2_t,
        nvmlInit=lambda: call("nvmlInit"),
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetGpuFabricInfoV=info_of,
    )


DONE, STARTING = pynvml.NVML_GPU_FABRIC_STATE_COMPLETED, pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [
        (driver((UUID, 3, DONE), (UUID, 3, DONE)), f"fabric {UUID.hex()}.3"),
        # Of an eight-GPU server the UUID is zero; two cliques are not linked to each other.
        (driver((bytes(16), 0, DONE)), ""),
        (driver((UUID, 3, DONE), (UUID, 4, DONE)), ""),
        (driver((UUID, 3, STARTING)), ""),
        (driver(), None),
        (driver((UUID, 3, DONE), fails="nvmlInit"), None),
        (driver((UUID, 3, DONE), fails="nvmlDeviceGetGpuFabricInfoV"), None),
    ],
)
def test_the_fabric_of_a_nodes_gpus(nvml: Any, expected: str | None) -> None:
    assert read_fabric(nvml) == expected


def test_this_machine_is_asked_without_a_failure() -> None:
    found = read_fabric()
    assert found is None or found == "" or found.startswith("fabric ")
