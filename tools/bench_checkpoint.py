"""What an asynchronous save costs, on this machine: a random model of SmolLM2-135M's shape in bfloat16, on gloo.

The policy's ranks make updates as in a run, without engines and Ray; a save is what a run does: copy, write beside
updates, metadata, manifest, rename. Medians over the saves, the first of which (it makes the memory and starts the
writers) is told apart.

* held_up_s: seconds for which no rank trains: from all ranks ready to all copied.
* slowed_s: what the updates beside the writing took longer, together, than as many without a save.
* total_s: from all ranks ready to the checkpoint complete under its name, synced to the disk.
* bytes: of the checkpoint; staged_bytes_per_rank: host memory of the copy, which stays for the next save;
  writer_bytes_per_rank: most private memory of a rank's writer process, torch included.
* share_of_disk: bytes / total_s over what the same disk takes when as many processes write as many bytes in blocks of
  8 MiB and sync, right after each save.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2, distributed optimizer": {"parallel": {"world_size": 2}},
    "PP2": {"parallel": {"pipeline": 2, "world_size": 2}},
}
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
BLOCK_BYTES = 8 << 20
ALONE = 3
"""Updates without a save that are timed before each."""
EXAMPLES = """examples:
  python tools/bench_checkpoint.py                       # a table; about four minutes on 2 cores, 2 GB a save
  python tools/bench_checkpoint.py --json
  python tools/bench_checkpoint.py --directory /mnt/lustre/bench --saves 5
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        model = make_model(Path(scratch) / "model", layers=options.layers)
        rows = [measure(name, model, Path(scratch), saves=options.saves) for name in options.layouts]
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_table(Console(), rows)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--saves", type=int, default=3, help="saves that are timed after the first (default 3)")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="of the model (default 30)")
    parser.add_argument("--directory", type=Path, help="on the disk to write to (default: that of temporary files)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all")
    options = parser.parse_args(arguments)
    if options.saves < 1 or options.layers < 1:
        parser.error("--saves and --layers must be at least 1")
    return options


def make_model(path: Path, *, layers: int) -> Path:
    """A random Hugging Face checkpoint."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(SHAPE | {"num_hidden_layers": layers}))
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def measure(layout: str, model: Path, scratch: Path, *, saves: int) -> dict[str, Any]:
    """A row: every rank is a process of its own, started from here."""
    print(f"{layout} ...", file=sys.stderr)
    ranks = LAYOUTS[layout]["parallel"]["world_size"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = scratch / layout.replace(" ", "-")
    directory.mkdir()
    job = {"layout": layout, "model": str(model), "directory": str(directory), "port": port, "saves": saves}
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bench_checkpoint as b; b.run_rank()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(job | {"rank": rank})],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f"{layout}: a rank failed, see above")
    return summarise(layout, json.loads(said[0].splitlines()[-1]))


def summarise(layout: str, told: dict[str, Any]) -> dict[str, Any]:
    """The medians of what rank 0 told of each save, the first apart."""
    first, *rest = told["saves"]
    row = {"layout": layout, "ranks": told["ranks"], "saves": len(rest), "first_held_up_s": first["held_up_s"]}
    return row | {name: statistics.median(save[name] for save in rest) for name in first}


# one rank


def run_rank() -> None:
    """A policy rank of the job in the arguments. The last line that rank 0 prints is JSON."""
    import torch

    from megarl.policy.process import RankPlace
    from megarl.policy.worker import MegatronWorker

    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    config = make_config(job["model"], LAYOUTS[job["layout"]])
    ranks, rank = config.parallel.world_size, job["rank"]
    place = RankPlace(rank=rank, world_size=ranks, master_host="127.0.0.1", master_port=job["port"], secret="5e" * 32)
    worker = MegatronWorker(config, place, optimizer=config.policy.optimizer, total_updates=1000, reference=False)
    bench = RankBench(worker, config, rank, Path(job["directory"]))
    saves = [bench.save(number) for number in range(1, job["saves"] + 2)]
    worker.close()
    if rank == 0:
        print(json.dumps({"ranks": ranks, "saves": saves}), flush=True)


def make_config(model: str, layout: dict[str, Any]) -> Any:
    from megarl.config.run import RunConfig

    return RunConfig.model_validate(
        {
            "name": "bench",
            "model": {"path": model, "dtype": "bfloat16"},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "random"}},
            "policy": {"tokens_per_micro_batch": 256},
            "train": {"prompts_per_step": 2, "samples_per_prompt": 2, "mini_batch_responses": 4, "steps": 4},
            **layout,
        }
    )


class RankBench:
    """Updates and saves of one rank; all ranks call everything together."""

    def __init__(self, worker: Any, config: Any, rank: int, directory: Path) -> None:
        from megarl.controller.batching import shard_step
        from megarl.records import Sample

        self._worker, self._config, self._rank, self._directory = worker, config, rank, directory
        response = tuple(range(1, 33))
        samples = [
            Sample(prompt=(1, 2, 3), response=response, behavior_logp=(0.0,) * 32, advantage=1.0) for _ in range(4)
        ]
        self._shard = shard_step(samples, config)[worker._grid.position(rank).data]
        self._update()

    def _update(self) -> float:
        """Seconds of one."""
        import torch.distributed as dist

        from megarl.objective.tokens import Controls

        dist.barrier()
        began = time.perf_counter()
        self._worker.score(self._shard)
        self._worker.train_mini_batch(0, Controls(step=1, seed=0))
        dist.barrier()
        return time.perf_counter() - began

    def save(self, number: int) -> dict[str, float]:
        """One save beside updates, and what the disk does by itself."""
        import torch.distributed as dist

        from megarl.checkpoint.run_checkpoint import PendingCheckpoint, total_bytes
        from megarl.runtime.saving import Saving, merge_written, numbers_of, outcome

        alone_s = statistics.median(self._update() for _ in range(ALONE))
        pending = PendingCheckpoint(self._directory, step=number)
        if self._rank == 0:
            pending.begin()
        dist.barrier()
        began = time.perf_counter()
        staged = outcome(self._worker.stage_checkpoint, str(pending.path))
        dist.barrier()
        held_up_s = time.perf_counter() - began
        with WriterMemory(self._worker) as memory, ThreadPoolExecutor(1) as pool:
            writing = pool.submit(outcome, self._worker.finish_checkpoint)
            beside = self._train_beside(writing)
            written = self._gather((writing.result(), memory.peak))
        numbers = numbers_of(self._gather(staged))
        result: dict[str, float] = {}
        if self._rank == 0:
            saved = merge_written(Saving(pending.path, numbers), [part for part, _ in written], self._config)
            pending.complete(self._manifest(number, saved))
            result = {
                "held_up_s": held_up_s,
                "slowed_s": max(0.0, sum(beside) - alone_s * len(beside)),
                "total_s": time.perf_counter() - began,
                "updates_beside": len(beside),
                "bytes": total_bytes(saved.files),
                "staged_bytes_per_rank": saved.staged_bytes,
                "writer_bytes_per_rank": max(peak for _, peak in written),
            }
        disk = self._measure_disk(self._worker._saver._memory.num_bytes)
        return result | {"share_of_disk": result["bytes"] / result["total_s"] / disk} if result else result

    def _train_beside(self, writing: Any) -> list[float]:
        """Seconds of the updates until every rank has written."""
        seconds: list[float] = []
        while not all(self._gather(writing.done())):
            seconds.append(self._update())
        return seconds

    def _manifest(self, number: int, saved: Any) -> Any:
        from megarl.checkpoint.manifest import Manifest, describe_config
        from megarl.telemetry.versions import collect_versions

        config, digest = describe_config(self._config)
        return Manifest(
            step=number,
            policy_version=number,
            updates=saved.updates,
            optimizer_step=saved.optimizer_step,
            progress={},
            layout=saved.layout,
            model=saved.model,
            config=config,
            config_digest=digest,
            versions=collect_versions(),
            telemetry={},
            metrics={},
            files=saved.files,
        )

    def _measure_disk(self, num_bytes: int) -> float:
        """Bytes a second of all ranks together, into a file of each."""
        import torch.distributed as dist

        block = os.urandom(BLOCK_BYTES)
        path = self._directory / f"disk-{self._rank}"
        dist.barrier()
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for start in range(0, num_bytes, BLOCK_BYTES):
                file.write(memoryview(block)[: min(BLOCK_BYTES, num_bytes - start)])
            os.fsync(file.fileno())
        dist.barrier()
        seconds = time.perf_counter() - began
        path.unlink()
        return sum(self._gather(num_bytes)) / seconds

    def _gather(self, mine: Any) -> list[Any]:
        import torch.distributed as dist

        gathered: list[Any] = [None] * self._config.parallel.world_size
        dist.all_gather_object(gathered, mine)
        return gathered


class WriterMemory:
    """The most private memory of a rank's writer process while the block runs."""

    def __init__(self, worker: Any) -> None:
        self._worker, self.peak = worker, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "WriterMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            pid = self._worker._saver.writer_pid
            if pid is not None:
                self.peak = max(self.peak, private_bytes(pid))


def private_bytes(pid: int) -> int:
    """RssAnon of a process: not the staging memory, which it shares; 0 where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def print_table(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="an asynchronous save, medians", caption="GB: 10^9 bytes")
    table.add_column("layout")
    for header in ("GB", "held up s", "first", "slowed s", "total s", "of the disk", "copy GB a rank", "writer GB"):
        table.add_column(header, justify="right")
    for row in rows:
        names = ("held_up_s", "first_held_up_s", "slowed_s", "total_s", "share_of_disk")
        numbers = [f"{row[name]:.2f}" for name in names]
        sizes = [f"{row[name] / 1e9:.2f}" for name in ("bytes", "staged_bytes_per_rank", "writer_bytes_per_rank")]
        table.add_row(row["layout"], sizes[0], *numbers, *sizes[1:])
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
