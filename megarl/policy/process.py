"""torch.distributed and Megatron's process groups of one policy worker."""

import datetime
import math
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megarl.config.policy import ParallelConfig
from megarl.parallel.device import collective_backend, prepare_process


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where a policy rank is and how it meets the others."""

    rank: int
    world_size: int
    master_host: str
    master_port: int
    local_rank: int = 0
    """Index among the GPUs this process sees."""


def join_policy_group(place: RankPlace, *, parallel: ParallelConfig, timeout_s: float, seed: int) -> torch.device:
    """Meet all policy ranks and build Megatron's groups; returns the device to compute on."""
    # Sequence parallelism relies on kernels starting in program order; read when the CUDA context is made.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = prepare_process(place.local_rank)
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(
        collective_backend(),
        init_method=f"tcp://{place.master_host}:{place.master_port}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        distributed_timeout_minutes=max(1, math.ceil(timeout_s / 60)),
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    return device


def leave_policy_group() -> None:
    """Leave the process groups; safe to call twice. The CPU adaptation stays for the life of the process."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
