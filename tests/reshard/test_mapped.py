"""The channel without staging: from which GPU a worker reads, and what is told of where parameters lie."""

import json
from typing import Any

import pytest
import torch

from megarl.models.families import read_model_shape
from megarl.models.serving import engine_boxes
from megarl.parallel.grid import RankGrid
from megarl.reshard import mapped
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.plan import PlanRequest, plan_engine_worker
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import pack_nodes
from tests.models.shapes import CONFIGS

SHAPE = read_model_shape(CONFIGS / "qwen2.5-7b.json")


def read_by_rank(*, tensor: int, data: int, engines: int, rollout_tensor: int, worker: int) -> dict[int, int]:
    """Elements that a worker reads, by policy rank."""
    grid = RankGrid(tensor=tensor, pipeline=1, data=data)
    boxes = [engine_boxes(SHAPE, tensor_rank=rank, tensor_size=rollout_tensor) for rank in range(rollout_tensor)]
    request = PlanRequest(
        wanted=WantedBoxes(boxes),
        topology=pack_nodes(grid=grid, engines=engines, tensor=rollout_tensor, gpus_per_node=8),
        itemsize=2,
        bucket_bytes=64 << 20,
        fanout="direct",
    )
    targets = {box: (Region(box.tensor, 0, contiguous_strides(box.shape)),) for box in boxes[worker % rollout_tensor]}
    plan = plan_engine_worker(request, PolicyLayout(shape=SHAPE, grid=grid).holdings(), targets, worker=worker)
    read: dict[int, int] = {}
    for message in plan.receives:
        read[message.sender] = read.get(message.sender, 0) + message.num_elements
    return read


@pytest.mark.parametrize("worker", [0, 5])
def test_a_worker_reads_what_its_own_gpu_holds_from_there(worker: int) -> None:
    """Worker n shares the GPU of policy rank n."""
    read = read_by_rank(tensor=1, data=8, engines=8, rollout_tensor=1, worker=worker)
    assert [*read] == [worker]
    read = read_by_rank(tensor=2, data=4, engines=8, rollout_tensor=1, worker=worker)
    assert set(read) == {worker, worker ^ 1}, "the other half from the GPU that has it beside this one"
    assert read[worker] / sum(read.values()) == pytest.approx(0.5, abs=1e-3)


def test_each_storage_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor] = []

    def export(data: torch.Tensor) -> dict[str, Any]:
        told.append(data)
        return {"number": len(told) - 1}

    def open_(exported: dict[str, Any], dtype: torch.dtype, *, on: torch.device) -> torch.Tensor:
        assert (dtype, on) == (torch.uint8, torch.device("cpu"))
        return told[exported["number"]]

    monkeypatch.setattr(mapped, "export_cuda", export)
    monkeypatch.setattr(mapped, "import_cuda", open_)
    buffer = torch.arange(20, dtype=torch.bfloat16)
    parameters = {"a": buffer[:6].view(2, 3), "b": torch.arange(4.0), "c": buffer[8:]}
    exported = mapped.export_parameters(parameters)
    assert [data.nbytes for data in told] == [40, 16]
    opened = mapped.open_parameters(json.loads(json.dumps(exported)), torch.device("cpu"))
    for name, parameter in parameters.items():
        assert torch.equal(opened[name], parameter.flatten())
        assert opened[name].data_ptr() == parameter.data_ptr(), "the memory itself, and no copy"
