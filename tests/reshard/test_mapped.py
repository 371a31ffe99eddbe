"""The channel without staging: from which GPU a worker reads, and what is told of where parameters lie."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from megarl.models.families import read_model_shape
from megarl.models.serving import engine_boxes
from megarl.parallel.grid import RankGrid
from megarl.reshard import mapped
from megarl.reshard import plan as plan_module
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.channel import Announced, Held
from megarl.reshard.message import Header
from megarl.reshard.pack import pack_range, views_between
from megarl.reshard.plan import PlanRequest, TransferPlan, plan_engine_worker
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import pack_nodes
from tests.models.shapes import CONFIGS
from tests.reshard.publication import Setting
from tests.reshard.simulated_transfer import DTYPE, UNTOUCHED, Publication, fill_policy, number_elements

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


class Signals:
    """One process's store."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}

    def put(self, key: str, message: Any) -> None:
        self._messages[key] = json.dumps(message)

    def get(self, keys: list[str], **_: Any) -> list[Any]:
        return [json.loads(self._messages[key]) for key in keys]


@pytest.mark.parametrize("bucket_bytes", [40, 1 << 20])
@pytest.mark.parametrize(("tensor", "pipeline", "data"), [(2, 1, 2), (1, 2, 3), (2, 2, 1)])
@pytest.mark.parametrize("rollout_tensor", [1, 2])
def test_what_is_installed_is_what_the_policy_holds(
    tensor: int, pipeline: int, data: int, rollout_tensor: int, bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas share to the element, so that a unit comes from several ranks; every message is what they would pack."""
    monkeypatch.setattr(plan_module, "_MIN_SHARE_BYTES", 4)
    memory: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(mapped, "export_cuda", lambda data: memory.setdefault(data.data_ptr(), data).data_ptr())
    monkeypatch.setattr(mapped, "import_cuda", lambda found, *_, **__: memory[found])
    grid = RankGrid(tensor=tensor, pipeline=pipeline, data=data)
    setting = Setting(tensor=tensor, pipeline=pipeline, data=data, rollout_tensor=rollout_tensor, transport="mapped")
    publication = Publication(
        layout=PolicyLayout(shape=setting.shape, grid=grid),
        topology=pack_nodes(grid=grid, engines=1, tensor=rollout_tensor, gpus_per_node=64),
        bucket_bytes=bucket_bytes,
        fanout="direct",
    )
    plans, tensors, signals = publication.plans(), number_elements(publication), Signals()
    policy = fill_policy(publication, tensors)
    positions = map(grid.position, range(grid.world_size))
    parameters = [only_what_is_sent(policy[at.pipeline, at.tensor], plans[rank]) for rank, at in enumerate(positions)]
    for rank, held in enumerate(parameters):
        mapped.MappedOutlet(signals, publication.topology, plans[rank], held, DTYPE)  # type: ignore[arg-type]
    for worker in range(rollout_tensor):
        plan = plans[grid.world_size + worker]
        inlet = mapped.MappedInlet(
            signals,  # type: ignore[arg-type]
            replace(setting.offer, dtype=DTYPE),
            plan,
            publication.request,
            worker=worker,
            device=torch.device("cpu"),
        )
        check_messages(inlet, plan, plans, parameters)
        live = {p.name: torch.full(p.shape, UNTOUCHED, dtype=DTYPE) for p in publication.live[worker]}
        for key, block in plan.blocks.items():
            for unit in block.units:
                for region in unit.regions:
                    inlet.install(Held(key, unit, region), live[region.parameter])
        for parameter in publication.live[worker]:
            assert torch.equal(live[parameter.name], parameter.expected(tensors, UNTOUCHED)), parameter.name


def only_what_is_sent(held: dict[str, torch.Tensor], plan: TransferPlan) -> dict[str, torch.Tensor]:
    """A rank's parameters with nothing in them that a replica sends: what is read from the wrong one shows."""
    sent = {name: torch.full_like(values, UNTOUCHED - 1) for name, values in held.items()}
    for message in plan.sends:
        block = plan.blocks[message.block]
        pieces = (views_between(of, block, message.start, message.stop) for of in (sent, held))
        for (_, to), (_, values) in zip(*pieces, strict=True):
            to.copy_(values)
    return sent


def check_messages(
    inlet: mapped.MappedInlet, plan: TransferPlan, plans: list[TransferPlan], parameters: list[dict[str, torch.Tensor]]
) -> None:
    for message in plan.receives:
        header = Header(1, 0, 4 * message.num_elements, ())
        announced = Announced(header=header, message=message, what="", wire=None)  # type: ignore[arg-type]
        sent = torch.empty(message.num_elements, dtype=DTYPE)
        block = plans[message.sender].blocks[message.block]
        pack_range(parameters[message.sender], block, message.start, message.stop, out=sent)
        assert torch.equal(inlet.start(announced).land(), sent)


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
