"""Run a function on N gloo ranks in processes of their own, for tests of distributed code."""

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.dist.forks import fork_context


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `fn(*args)` on `world_size` gloo ranks and return what each returned, by rank.

    `fn` is a module-level function; inside it `torch.distributed` is initialised (gloo, one thread per rank), so it
    asks `dist.get_rank()`. Results must pickle (tensors do). Whatever happens, no process outlives the call.

    Raises:
        RuntimeError: a rank raised (its rank and traceback, the first to fail) or died without a word.
        TimeoutError: not all ranks finished within `timeout_s`.
    """
    context = fork_context()
    processes: list[Any] = []
    readers: dict[Connection, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            for rank in range(world_size):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main,
                    args=(fn, args, rank, world_size, str(Path(directory) / "store"), timeout_s, writer),
                    daemon=True,
                )
                process.start()
                writer.close()  # the child's end; without this a dead child would not read as end of file
                processes.append(process)
                readers[reader] = rank
            results = _collect(readers, deadline=time.monotonic() + timeout_s, timeout_s=timeout_s)
            for process in processes:
                process.join(timeout=10)
            return results
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(readers: dict[Connection, int], *, deadline: float, timeout_s: float) -> list[Any]:
    pending = dict(readers)
    results: list[Any] = [None] * len(readers)
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(pending.values())} did not finish within {timeout_s} s")
        for reader in ready:
            rank = pending.pop(reader)
            try:
                succeeded, payload = pickle.loads(reader.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without raising (killed, or os._exit)") from None
            if not succeeded:
                raise RuntimeError(f"rank {rank} failed:\n{payload}")
            results[rank] = payload
    return results


def _rank_main(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    store: str,
    timeout_s: float,
    writer: Connection,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        # A rank that has met the others may leave the group at once, while others have not met all yet.
        dist.barrier()
        # Plain pickle: torch's own would pass tensors as shared memory that dies with this process.
        message = pickle.dumps((True, fn(*args)))
        # Together to the end: a rank that leaves early would fail the others' last collective.
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        # Sent before this process's connections close, so that the parent hears of this failure first and not of
        # the ones that it causes on the other ranks.
        message = pickle.dumps((False, traceback.format_exc()))
    writer.send_bytes(message)
    writer.close()
