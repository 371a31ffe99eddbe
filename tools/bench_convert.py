"""What a conversion costs: seconds and memory of `megarl convert`, both ways, on a random checkpoint of a real shape.

A row is one command, in a process of its own. Its memory is the peak of every process of the command, mapped pages
included (VmHWM of proc(5)), added up; `share` is that over the bytes of the weights. `disk` is what the same disk takes
by itself just before, written as `megarl convert` writes: to the disk and not only to the page cache.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from megarl.checkpoint.hf_shards import TensorKind, create_shards, plan_shards, write_box
from megarl.models.boxes import Box
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors

ROOT = Path(__file__).parents[1]
POOL_ELEMENTS = 32 << 20
"""Random numbers of which every tensor is a part; prime numbers of rows apart, so that no two begin alike."""
SAMPLE_S = 0.01
DISK_BYTES = 2_000_000_000
EXAMPLES = """examples:
  python tools/bench_convert.py                         # Qwen2.5-7B, 15.2 GB; needs 31 GB of disk, some minutes
  python tools/bench_convert.py --json --processes 2
  python tools/bench_convert.py --layers 2 --directory /scratch
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-convert-") as scratch:
        rows = measure(Path(scratch), options)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_table(rows)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    shape = ROOT / "configs" / "shapes" / "qwen2.5-7b.json"
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--shape", type=Path, default=shape, help="config.json of the model (default: Qwen2.5-7B)")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where there is room (default: here)")
    parser.add_argument("--tensor", type=int, default=1, help="tensor ranks of the distributed checkpoint")
    parser.add_argument("--pipeline", type=int, default=1, help="its pipeline stages")
    parser.add_argument("--processes", type=int, default=1, help="processes of a conversion (default: %(default)s)")
    return parser.parse_args(arguments)


def measure(scratch: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each direction; the source of the first is removed before the second, for the sake of the disk."""
    config = json.loads(options.shape.read_text(encoding="utf-8"))
    config["num_hidden_layers"] = options.layers or config["num_hidden_layers"]
    first, middle, last = (scratch / name for name in ("first", "dist", "last"))
    model_bytes = write_random_checkpoint(first, config)
    layout = ["--tensor", str(options.tensor), "--pipeline", str(options.pipeline)]
    rows = []
    for direction, source, target, extra in (("hf_to_dist", first, middle, layout), ("dist_to_hf", middle, last, [])):
        disk = measure_disk(scratch / "plain", min(model_bytes, DISK_BYTES))
        seconds, peak = run_measured(["convert", str(source), str(target), *extra], processes=options.processes)
        shutil.rmtree(source)
        rows.append(
            {
                "direction": direction,
                "model_bytes": model_bytes,
                "peak_rss_bytes": peak,
                "seconds": round(seconds, 2),
                "share": round(peak / model_bytes, 4),
                "disk_gb_per_s": round(disk, 3),
                "processes": options.processes,
            }
        )
    return rows


def write_random_checkpoint(directory: Path, config: dict[str, Any]) -> int:
    """A bfloat16 checkpoint of random numbers; returns the bytes of its weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = hf_tensors(read_model_shape(directory))
    plan = plan_shards({name: TensorKind(dims, torch.bfloat16) for name, dims in tensors.items()})
    create_shards(directory, plan)
    pool = torch.randn(POOL_ELEMENTS, generator=torch.Generator().manual_seed(0)).bfloat16()
    begin = 0
    for name, dims in tensors.items():
        width = math.prod(dims[1:])
        rows = max(1, POOL_ELEMENTS // 2 // width)
        for low in range(0, dims[0], rows):
            stop = min(dims[0], low + rows)
            begin = (begin + 1_000_003) % (POOL_ELEMENTS // 2)
            values = pool[begin : begin + (stop - low) * width].view(stop - low, *dims[1:])
            write_box(directory, plan, Box(name, (low, *(0 for _ in dims[1:])), (stop, *dims[1:])), values)
    return sum(math.prod(dims) for dims in tensors.values()) * torch.bfloat16.itemsize


def measure_disk(file: Path, num_bytes: int) -> float:
    """GB/s of writing so many bytes to the disk."""
    block = os.urandom(8 << 20)
    started = time.perf_counter()
    with file.open("wb", buffering=0) as stream:
        for begin in range(0, num_bytes, len(block)):
            stream.write(block[: num_bytes - begin])
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    file.unlink()
    return num_bytes / 1e9 / seconds


def run_measured(arguments: list[str], *, processes: int) -> tuple[float, int]:
    """(seconds, peak bytes) of a command of megarl's and of all processes it starts."""
    command = [sys.executable, "-m", "megarl.cli.main", *arguments, "--processes", str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    peaks: dict[int, int] = {}
    started = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    root = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in tree:
            peaks[process.pid] = max(peaks.get(process.pid, 0), peak_of(process.pid))
        time.sleep(SAMPLE_S)
    output, _ = child.communicate()
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{output}")
    return seconds, sum(peaks.values())


def peak_of(pid: int) -> int:
    """Peak resident bytes of a process so far; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="megarl convert")
    for name in ("direction", "weights GB", "peak GB", "share", "seconds", "GB/s", "disk GB/s"):
        table.add_column(name, justify="right")
    for row in rows:
        size, seconds = row["model_bytes"] / 1e9, row["seconds"]
        values = (size, row["peak_rss_bytes"] / 1e9, row["share"], seconds, size / seconds, row["disk_gb_per_s"])
        table.add_row(row["direction"], *(f"{value:.2f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
