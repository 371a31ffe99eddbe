"""GPUs for the ranks of a test, where a machine has some."""

import os

import torch


def take_gpu(rank: int, world: int) -> int:
    """Which GPU a rank of this machine computes on; 0 where there is none.

    Ranks share GPUs where there are fewer. NCCL refuses that within a machine, so each rank then says that it is a
    machine of its own, and they speak over the loopback.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < world:
        loopback = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= {"NCCL_HOSTID": f"rank-{rank}", "NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"} | loopback
    return rank % gpus if gpus else 0
