"""`python -m megarl.slurm.loopback BACKEND RANKS`: one all-reduce among processes of this node; 1 where it fails."""

import datetime
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_ELEMENTS = 1 << 20
_TIMEOUT = datetime.timedelta(seconds=120)


def main(backend: str, ranks: int) -> int:
    """0 when every rank has the sum; raises what the first that failed raised."""
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_add_up, args=(backend, ranks, str(Path(directory) / "store")), nprocs=ranks)
    return 0


def _add_up(rank: int, backend: str, ranks: int, store: str) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=_TIMEOUT)
    values = torch.full((_ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    found = (values.min().item(), values.max().item())
    dist.destroy_process_group()
    if found != (expected, expected):
        raise RuntimeError(f"an all-reduce of 1 to {ranks} gave {found[0]} to {found[1]}, expected {expected}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
