"""torch.distributed and Megatron's process groups of one policy worker."""

import datetime
import math
import os
import socket
from dataclasses import dataclass, field
from typing import Literal

import psutil
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megarl.parallel.device import collective_backend, prepare_process
from megarl.parallel.grid import RankGrid
from megarl.policy.sealed_objects import seal_objects, unseal_objects
from megarl.reshard.seal import SealedStore
from megarl.reshard.signals import connect_store, listen, serve_store
from megarl.reshard.wire import local_address

_stores: list[dist.Store] = []
"""Of the groups that were joined: torch keeps their C++ half only, and asks the Python one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where a policy rank is and how it meets the others."""

    rank: int
    world_size: int
    master_host: str
    master_port: int
    secret: str = field(repr=False)
    """Of this group, from `megarl.reshard.seal.new_secret`; the same on all ranks."""
    listener: socket.socket | None = None
    """Rank 0's, where it has held the port since it was chosen; without one it listens when the ranks meet."""
    local_rank: int = 0
    """Index among the GPUs this process sees."""


def join_policy_group(
    place: RankPlace,
    *,
    grid: RankGrid,
    timeout_s: float,
    seed: int,
    backend: Literal["auto", "nccl", "gloo"] = "auto",
) -> torch.device:
    """Meet all policy ranks and build Megatron's groups; returns the device to compute on.

    ValueError for a `backend` that cannot be here, before anyone is waited for.
    """
    # Sequence parallelism relies on kernels starting in program order; read when the CUDA context is made.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = prepare_process(place.local_rank)
    collectives = collective_backend(backend)
    if device.type == "cuda" and collectives == "gloo" and grid.pipeline > 1:
        raise ValueError(
            f"gloo does not send from a GPU, and there are {grid.pipeline} stages: use policy.backend nccl"
        )
    timeout = datetime.timedelta(seconds=timeout_s)
    seal_objects(place.secret)
    dist.init_process_group(
        collectives,
        store=_meet(place, timeout_s=timeout_s),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=grid.tensor,
        pipeline_model_parallel_size=grid.pipeline,
        context_parallel_size=grid.context,
        expert_model_parallel_size=grid.expert,
        expert_tensor_parallel_size=grid.expert_tensor,
        distributed_timeout_minutes=max(1, math.ceil(timeout_s / 60)),
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    return device


def _meet(place: RankPlace, *, timeout_s: float) -> dist.Store:
    """The store of the ranks, which rank 0 serves on the job's address only and which believes the ranks alone.

    gloo listens on the interface of that address too.
    """
    host, port = place.master_host, place.master_port
    if place.rank == 0:
        store = serve_store(place.listener or listen(host, port), timeout_s)
    else:
        store = connect_store(host, port, timeout_s)
    address = local_address(host, port)
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    sealed = SealedStore(store, secret=place.secret, session="policy")
    _stores.append(sealed)
    return sealed


def leave_policy_group() -> None:
    """Leave the process groups; safe to call twice. The CPU adaptation stays for the life of the process."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    unseal_objects()
    _stores.clear()
