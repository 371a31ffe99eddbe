"""Trainer ranks and engine workers as gloo processes of their own, without Megatron and vLLM: the real sender and
receiver between parameters that are filled from numbered checkpoint tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.regions import parameter_key
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import Offer, Transport, WeightEndpoint
from megarl.reshard.tally import PublishReport
from tests.dist.gloo import run_on_ranks
from tests.models.shapes import make_shape
from tests.reshard.wanted import live_parameters, targets_of


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One publication's layouts and options."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    engines: int = 1
    rollout_tensor: int = 1
    transport: Transport = "network"
    delta: bool = False
    bucket_bytes: int = 1 << 12
    timeout_s: float = 20.0
    dtype: torch.dtype = torch.float32
    shape: ModelShape = field(default_factory=make_shape)

    @property
    def grid(self) -> RankGrid:
        return RankGrid(tensor=self.tensor, pipeline=self.pipeline, data=self.data)

    @property
    def num_takers(self) -> int:
        return self.engines * self.rollout_tensor

    @property
    def offer(self) -> Offer:
        return Offer(
            shape=self.shape,
            grid=self.grid,
            virtual=1,
            spec="local",
            tensors=hf_tensors(self.shape),
            dtype=self.dtype,
            engines=self.engines,
            tensor=self.rollout_tensor,
            transport=self.transport,
            bucket_bytes=self.bucket_bytes,
            device="cpu",
            staging="host",
            delta=self.delta,
        )


def checkpoint(shape: ModelShape, *, version: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors of a version; every second version changes few elements of the one before."""
    generator = torch.Generator().manual_seed(version - version % 2)
    tensors = {name: torch.randn(dims, generator=generator).to(dtype) for name, dims in hf_tensors(shape).items()}
    if version % 2:
        for tensor in tensors.values():
            tensor.view(-1)[::37] += 1
    return tensors


def trainer_parameters(setting: Setting, rank: int) -> dict[str, Tensor]:
    """Empty parameters of a trainer rank, by key."""
    entries = trainer_entries(setting, rank)
    return {parameter_key(entry.chunk, entry.name): torch.empty(entry.shape) for entry in entries}


def trainer_entries(setting: Setting, rank: int) -> Any:
    position = setting.grid.position(rank)
    layout = layout_of(
        setting.shape,
        tensor_rank=position.tensor,
        tensor_size=setting.tensor,
        pipeline_rank=position.pipeline,
        pipeline_size=setting.pipeline,
    )
    return list_parameters(setting.shape, layout)


def fill_trainer(setting: Setting, rank: int, parameters: Mapping[str, Tensor], version: int) -> None:
    tensors = checkpoint(setting.shape, version=version)
    for entry in trainer_entries(setting, rank):
        fill_parameter(
            parameters[parameter_key(entry.chunk, entry.name)], entry, lambda box: tensors[box.tensor][box.slices]
        )


def live_memory(setting: Setting, tensor_rank: int) -> dict[str, Tensor]:
    """Zeros for every parameter of the worker."""
    parameters = live_parameters(setting.shape, rank=tensor_rank, tensor_size=setting.rollout_tensor)
    return {parameter.name: torch.zeros(parameter.shape, dtype=setting.dtype) for parameter in parameters}


def expected_live(setting: Setting, tensor_rank: int, version: int) -> dict[str, Tensor]:
    """What the worker's parameters must hold: HF elements where a tensor goes, zero in the padding."""
    tensors = checkpoint(setting.shape, version=version)
    live = live_memory(setting, tensor_rank)
    for parameter in live_parameters(setting.shape, rank=tensor_rank, tensor_size=setting.rollout_tensor):
        for box, region in parameter.regions():
            view = torch.as_strided(live[parameter.name], box.shape, region.strides, region.offset)
            view.copy_(tensors[box.tensor][box.slices])
    return live


def open_session(setting: Setting) -> tuple[WeightEndpoint, Any]:
    """On every process: (endpoint, rank 0's store)."""
    store, shared = None, [None]
    if dist.get_rank() == 0:
        store, endpoint = serve_weights("127.0.0.1", timeout_s=setting.timeout_s)
        shared = [endpoint]  # type: ignore[list-item]
    dist.broadcast_object_list(shared, src=0)
    return shared[0], store  # type: ignore[return-value]


def connect(setting: Setting) -> tuple[WeightSender | WeightReceiver, dict[str, Tensor]]:
    """This process's end and its parameters."""
    endpoint, store = open_session(setting)
    rank = dist.get_rank()
    if rank < setting.grid.world_size:
        parameters = trainer_parameters(setting, rank)
        return WeightSender(endpoint, setting.offer, parameters, rank=rank, store=store), parameters
    taker = rank - setting.grid.world_size
    tensor_rank = taker % setting.rollout_tensor
    targets = targets_of(live_parameters(setting.shape, rank=tensor_rank, tensor_size=setting.rollout_tensor))
    receiver = WeightReceiver(endpoint, taker=taker, record=lambda _: targets)
    return receiver, live_memory(setting, tensor_rank)


def publish(end: WeightSender | WeightReceiver, parameters: dict[str, Tensor], setting: Setting, version: int) -> Any:
    """One version, on either end; a worker returns whether it then holds exactly that version."""
    rank = dist.get_rank()
    if isinstance(end, WeightSender):
        fill_trainer(setting, rank, parameters, version)
        return end.publish(version)
    end.begin()
    end.await_version(version)
    for name in end.parameters:
        end.fill(name, parameters[name])
    expected = expected_live(setting, (rank - setting.grid.world_size) % setting.rollout_tensor, version)
    return all(torch.equal(parameters[name], expected[name]) for name in expected)


def publish_versions(setting: Setting, versions: list[int]) -> list[Any]:
    """What `publish` returned for each version; reports of trainer ranks, truth of workers."""
    end, parameters = connect(setting)
    results = [publish(end, parameters, setting, version) for version in versions]
    dist.barrier()
    end.close()
    return [end.plan.bytes_sent, end.plan.received_over_bound, *results]


def run(setting: Setting, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """`function(setting, *args)` on trainer ranks first, then workers."""
    return run_on_ranks(function, setting.grid.world_size + setting.num_takers, setting, *args, timeout_s=timeout_s)


__all__ = ["PublishReport", "Setting", "connect", "publish", "publish_versions", "replace", "run"]
