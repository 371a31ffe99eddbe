"""Hugging Face weights into a rank's Megatron parameters, and back out of all ranks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from megarl.checkpoint.hf import HfCheckpoint, open_hf_checkpoint
from megarl.config.run import RunConfig
from megarl.models.layout import RankLayout, layout_of
from megarl.models.shape import ModelShape
from megarl.models.shards import fill_parameter
from megarl.models.table import ParameterEntry, Spec, hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.policy.model import PolicyModel, build_transformer_config, uses_transformer_engine
from megarl.reshard.gather import GatherPlan, gather_hf_tensors, plan_gather
from megarl.reshard.regions import parameter_key
from megarl.reshard.session import Offer


def rank_layout(shape: ModelShape, *, grid: RankGrid, rank: int) -> RankLayout:
    """What part of the model global rank `rank` holds."""
    position = grid.position(rank)
    return layout_of(
        shape,
        tensor_rank=position.tensor,
        tensor_size=grid.tensor,
        pipeline_rank=position.pipeline,
        pipeline_size=grid.pipeline,
    )


def layer_spec() -> Spec:
    """Which of Megatron's layer specs the models here are built with."""
    return "te" if uses_transformer_engine() else "local"


def named_parameters(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of all chunks by the keys of the transfer plans."""
    return {
        parameter_key(index, name): parameter
        for index, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }


def build_chunks(
    config: RunConfig, *, shape: ModelShape, layout: RankLayout, device: torch.device
) -> list[PolicyModel]:
    """The rank's part of the model with the checkpoint's weights: a chunk for each range of `layout.layers`."""
    megatron = build_transformer_config(shape, model=config.model, parallel=config.parallel, policy=config.policy)
    if config.policy.head == "auto":
        raise ValueError('policy.head is "auto": whoever starts the ranks decides it first (planning.head)')
    fused = config.policy.head == "fused"
    chunks = [
        PolicyModel(megatron, shape, layout=layout, chunk=chunk, fused_head=fused).to(device)
        for chunk in range(len(layout.layers))
    ]
    checkpoint = open_hf_checkpoint(Path(config.model.path))
    checkpoint.validate(hf_tensors(shape))
    load_hf_weights(chunks, checkpoint, shape=shape, layout=layout)
    return chunks


def load_hf_weights(
    chunks: Sequence[nn.Module], checkpoint: HfCheckpoint, *, shape: ModelShape, layout: RankLayout
) -> None:
    """Fill every parameter of the chunks from its boxes; RuntimeError if table and model name different parameters."""
    parameters = named_parameters(chunks)
    table = list_parameters(shape, layout, spec=layer_spec())
    entries = {parameter_key(entry.chunk, entry.name): entry for entry in table}
    if parameters.keys() != entries.keys():
        raise RuntimeError(
            "the weight table and the Megatron model disagree: "
            f"only in the table {sorted(entries.keys() - parameters.keys())}, "
            f"only in the model {sorted(parameters.keys() - entries.keys())}"
        )
    for name, entry in entries.items():
        _mark_tensor_parallel(parameters[name], entry)
        fill_parameter(parameters[name].data, entry, checkpoint.read)


def _mark_tensor_parallel(parameter: nn.Parameter, entry: ParameterEntry) -> None:
    """Tell Megatron which parameters are split over the tensor ranks.

    It marks them while it initialises them, which is skipped for weights that are read anyway; a shard without the mark
    counts as a duplicate and is left out of the gradient norm on every tensor rank but the first.
    """
    if entry.split_dim is not None and not getattr(parameter, "tensor_model_parallel", False):
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=entry.split_dim, stride=1)


def plan_export(shape: ModelShape, *, grid: RankGrid, bucket_bytes: int, dtype: torch.dtype) -> GatherPlan:
    """Which rank of the first replica sends which boxes to rank 0."""
    entries = {
        rank: list_parameters(shape, rank_layout(shape, grid=grid, rank=rank), spec=layer_spec())
        for rank in grid.data_group(0)
    }
    return plan_gather(entries, hf_tensors(shape), bucket_bytes=bucket_bytes, dtype=dtype)


def export_hf_weights(chunks: Sequence[nn.Module], plan: GatherPlan) -> Iterator[tuple[str, Tensor]]:
    """Full HF tensors, in the plan's dtype, on rank 0; every rank of the first replica must exhaust the iterator."""
    yield from gather_hf_tensors(shared_parameters(chunks), plan, rank=dist.get_rank())


def make_offer(
    shape: ModelShape, *, config: RunConfig, grid: RankGrid, dtype: torch.dtype, device: torch.device
) -> Offer:
    """What the policy publishes to the configured engines. Without a GPU everything goes through host memory."""
    publish = config.rollout.publish
    mapped = publish.staging == "none" and device.type == "cuda"
    return Offer(
        shape=shape,
        grid=grid,
        virtual=1,
        spec=layer_spec(),
        tensors=hf_tensors(shape),
        dtype=dtype,
        engines=config.rollout.engines,
        tensor=config.rollout.tensor,
        transport="mapped" if mapped else publish.transport,
        bucket_bytes=publish.bucket_mib << 20,
        # NCCL takes no two ranks on one GPU: messages to engines on the policy's own go through host memory.
        device="cuda" if device.type == "cuda" and not config.cluster.colocate else "cpu",
        staging="device" if publish.staging == "device" and device.type == "cuda" else "host",
        delta=publish.delta,
    )


def shared_parameters(chunks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """What the chunks' parameters hold, by the keys of the transfer plans; the memory stays over all updates."""
    return {key: parameter.data for key, parameter in named_parameters(chunks).items()}
