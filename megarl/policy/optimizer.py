"""AdamW over Megatron's main weights, its distributed form, and the learning-rate schedule."""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from torch import Tensor

from megarl.config.policy import OptimizerConfig
from megarl.policy.model import PolicyModel

Overlap = Literal["off", "gradients", "all"]


def learning_rate(update: int, *, config: OptimizerConfig, total_updates: int) -> float:
    """Rate of the `update`-th optimizer update, counted from 1: linear warm-up, then constant or half a cosine.

    The cosine starts at `lr` in the last update of the warm-up (the first of a run without) and is at `min_lr` in
    update total_updates + 1, so no update of the run has rate 0.
    """
    if update <= config.warmup_updates:
        return config.lr * update / config.warmup_updates
    if config.schedule == "constant":
        return config.lr
    peak = max(config.warmup_updates, 1)
    progress = min((update - peak) / max(total_updates + 1 - peak, 1), 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def wrap_data_parallel(
    chunks: Sequence[PolicyModel],
    *,
    distributed_optimizer: bool,
    overlap: Overlap = "off",
    bucket_elements: int | None = None,
) -> list[DistributedDataParallel]:
    """Megarl's chunks in Megatron's gradient buffers; gradients are summed over data ranks, in float32.

    overlap: see PolicyConfig; bucket_elements: at which Megatron closes a bucket then, None for its own number. With
    "all" the weights are those of the last update only after the next forward, or `settle_weights`.
    """
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        check_for_nan_in_grad=False,
        overlap_grad_reduce=overlap != "off",
        overlap_param_gather=overlap == "all",
        bucket_size=bucket_elements,
    )
    wrapped = [
        # As Megatron does: what a virtual pipeline runs later is reduced in one piece, while the chunk before it runs.
        DistributedDataParallel(config=chunk.config, ddp_config=ddp, module=chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    for chunk, around in zip(chunks, wrapped, strict=True):
        chunk.await_weight = functools.partial(_await_weight, around) if overlap == "all" else None
    return wrapped


def _await_weight(ddp: DistributedDataParallel, weight: Tensor) -> None:
    """Return when a weight is gathered that is read outside of its module, where no hook of Megatron's waits."""
    if weight in ddp.param_to_bucket_group:  # not one of another chunk's, or a reference's
        ddp.param_to_bucket_group[weight].finish_param_sync(skip_next_bucket_dispatch=True)


def settle_weights(chunks: Sequence[DistributedDataParallel]) -> None:
    """Every weight here is that of the last update. Where gathering overlaps, all ranks must call it together, before
    anything but a forward reads weights; elsewhere it does nothing."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            for group in reversed((*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups)):
                group.finish_param_sync(skip_next_bucket_dispatch=True)


def forget_gather(chunks: Sequence[DistributedDataParallel]) -> None:
    """Weights were updated: where gathering overlaps, whoever reads them next gathers. Megatron expects that since the
    gradients were reduced, but who has read weights between the two has gathered the old ones."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
                group.param_gather_dispatched = False


def gradient_buffers(chunks: Sequence[DistributedDataParallel]) -> list[Tensor]:
    """What holds the gradients of all parameters."""
    return [buffer.grad_data for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]


def build_optimizer(
    chunks: Sequence[DistributedDataParallel],
    *,
    config: OptimizerConfig,
    dtype: torch.dtype,
    distributed_optimizer: bool,
    overlap: Overlap = "off",
    fused: bool = False,
) -> MegatronOptimizer:
    """Megatron's AdamW with float32 main weights; no weight decay on biases and norms. fused: see `fuse`."""
    settings = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad_norm,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=distributed_optimizer,
        overlap_param_gather=overlap == "all",
    )
    optimizer = get_megatron_optimizer(settings, list(chunks), use_gloo_process_groups=False)
    for group in optimizer.param_groups:
        # Megatron marks biases and norms with wd_mult = 0 and leaves it to its own scheduler to act on the mark.
        group["weight_decay"] = config.weight_decay * group["wd_mult"]
    if fused:
        fuse(optimizer)
    return optimizer


def fuse(optimizer: MegatronOptimizer) -> None:
    """Let torch's AdamW, which Megatron takes where neither Transformer Engine nor apex is, update in one kernel.

    By itself it takes the root of all second moments at once: 4 bytes an element for a moment. Before the first update.
    """
    for inner in (part.optimizer for part in optimizer_parts(optimizer)):
        if isinstance(inner, torch.optim.Adam):  # AdamW too, from torch 2.8 on
            for group in inner.param_groups:
                group["fused"], group["foreach"] = True, False


def set_learning_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    """Use `lr` for every parameter group from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_parts(optimizer: MegatronOptimizer) -> Sequence[MegatronOptimizer]:
    """The optimizers that Megatron has chained, each with one of torch's within."""
    parts: Sequence[MegatronOptimizer] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts


def forget_moments(optimizer: MegatronOptimizer) -> None:
    """Zero the means of gradients and squared gradients and their step count; the weights stay."""
    for inner in (part.optimizer for part in optimizer_parts(optimizer)):
        for state in inner.state.values():
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if isinstance(state.get(name), torch.Tensor):
                    state[name].zero_()
                elif name in state:
                    state[name] = 0
        for group in inner.param_groups:
            # Fused implementations count steps per group.
            if "step" in group:
                group["step"] = torch.zeros_like(group["step"]) if isinstance(group["step"], torch.Tensor) else 0
