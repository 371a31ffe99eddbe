"""Time and memory of the vocabulary-parallel log-prob and entropy, forward and backward, on the CPU and gloo.

Rows, all on the same numbers (values are compared before anything is timed):
  core                  megarl.parallel.vocab, from logits, gradient written over them
  fused_linear          megarl.parallel.fused_linear, from hidden states and output weight; its time contains the
                        matrix products (1 forward, 3 backward) that the other rows do not do
  megatron_plus_entropy Megatron-core's vocab_parallel_cross_entropy, and the entropy in torch operations with its sums
                        reduced over the ranks. Megatron's overwrites float32 logits, so it gets a clone of those;
                        bf16 logits are converted to float32 for the entropy, as they are in Megatron's
  floor                 a copy of the logits shard into memory that exists, forward and backward alike

How it is measured:
* One thread per rank. Implementations take turns, run by run, so that the machine's noise meets all of them. A run's
  time is the slowest rank's; the result is the median over the runs, after one that does not count.
* Times: processes in which freed memory stays with the process (MALLOC_MMAP_MAX_=0), as a CUDA caching allocator
  keeps it, after HEAP_SHARDS float32 shards were touched and freed. Otherwise page faults decide the time of whatever
  allocates much: 0.15 to 2 s for one backward of megatron_plus_entropy.
* Memory: processes of their own with a fixed mmap threshold, so that freed memory is returned at once. Peak is the
  high-water mark of the resident set (VmHWM, reset through /proc/self/clear_refs) over forward and backward, minus the
  resident set before, in units of the rank's float32 logits [tokens, vocab / tensor]; the worst rank counts. It
  includes what libraries and gloo allocate. Inputs are not counted, nor fused_linear's returned gradients, which have
  the size of its inputs. The gradient of logits is counted where it is not written over them.
* Collectives: calls into torch.distributed, counted by wrapping its functions.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megarl.parallel.device import adapt_process_to_cpu, cuda_present
from megarl.parallel.fused_linear import fused_linear_logp_entropy
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from megarl.telemetry.resident_memory import CLEAR_REFS, reset_resident_peak, resident_bytes

IMPLEMENTATIONS = ("core", "fused_linear", "megatron_plus_entropy", "floor")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIN_REPEATS = 5
MALLOC_FOR_TIMES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
MALLOC_FOR_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
HEAP_SHARDS = 8
LOGITS_SPREAD = 3.0
EXAMPLES = """examples:
  python tools/bench_vocab_parallel.py                        # a table, about 5 minutes on 2 cores
  python tools/bench_vocab_parallel.py --json > bench.json
  python tools/bench_vocab_parallel.py --tokens 256 --vocab 32768 --hidden 128 --tensor 2 --dtypes bfloat16
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What every implementation computes on; sizes of one measurement, over all ranks."""

    tokens: int
    vocab: int
    hidden: int
    tensor: int
    repeats: int

    @property
    def columns(self) -> int:
        """Vocabulary columns of one rank."""
        return self.vocab // self.tensor

    @property
    def shard_bytes(self) -> int:
        """Float32 logits of one rank."""
        return self.tokens * self.columns * 4


class Inputs:
    """A rank's tensors. Logits are the product of hidden states and weight, so that all rows have one answer."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.rank = dist.get_rank()
        self.group = dist.group.WORLD if shape.tensor > 1 else None
        generator = torch.Generator().manual_seed(1)
        self.target_T = torch.randint(0, shape.vocab, (shape.tokens,), generator=generator)
        self.upstream = tuple(torch.randn(2, shape.tokens, generator=generator))
        hidden_TH = torch.randn(shape.tokens, shape.hidden, generator=generator)
        generator.manual_seed(2 + self.rank)
        weight_VH = torch.randn(shape.columns, shape.hidden, generator=generator)
        self.hidden_TH = hidden_TH.to(dtype)
        self.weight_VH = weight_VH.mul_(LOGITS_SPREAD / shape.hidden**0.5).to(dtype)
        self.master_TV = torch.mm(self.hidden_TH.float(), self.weight_VH.float().t()).to(dtype)
        self.logits_TV = torch.empty_like(self.master_TV)
        start = self.rank * shape.columns
        self.vocab_range = {"vocab_start": start, "vocab_stop": start + shape.columns}


@dataclass(frozen=True, slots=True)
class Run:
    """One forward pass: what to differentiate, and for what."""

    outputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]


def forward_core(inputs: Inputs) -> Run:
    logits_TV = inputs.logits_TV.requires_grad_().view_as(inputs.logits_TV)
    result = vocab_parallel_logp_entropy(logits_TV, inputs.target_T, group=inputs.group, **inputs.vocab_range)
    return Run((result.logp_T, result.entropy_T), (logits_TV,))


def forward_fused_linear(inputs: Inputs) -> Run:
    leaves = (inputs.hidden_TH.requires_grad_(), inputs.weight_VH.requires_grad_())
    result = fused_linear_logp_entropy(*leaves, inputs.target_T, group=inputs.group, **inputs.vocab_range)
    return Run((result.logp_T, result.entropy_T), leaves)


def forward_megatron_plus_entropy(inputs: Inputs) -> Run:
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits_TV = inputs.logits_TV.requires_grad_().view_as(inputs.logits_TV)
    entropy_T = plain_entropy(logits_TV)
    overwritten_TV = logits_TV.clone() if logits_TV.dtype == torch.float32 else logits_TV
    return Run((-vocab_parallel_cross_entropy(overwritten_TV, inputs.target_T), entropy_T), (logits_TV,))


def plain_entropy(logits_TV: Tensor) -> Tensor:
    """log S - sum p x by autograd, x = z - max; the three numbers per token are reduced over the tensor ranks."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region as reduce_sum

    logits_TV = logits_TV.float()
    max_T = logits_TV.detach().amax(1)
    dist.all_reduce(max_T, dist.ReduceOp.MAX, group=parallel_state.get_tensor_model_parallel_group())
    shifted_TV = logits_TV - max_T[:, None]
    weight_TV = shifted_TV.exp()
    sum_T = reduce_sum(weight_TV.sum(1))
    return sum_T.log() - reduce_sum((weight_TV * shifted_TV).sum(1)) / sum_T


def backward(run: Run, inputs: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run.outputs, run.leaves, inputs.upstream)


def copy_shard(inputs: Inputs) -> None:
    inputs.logits_TV.detach().copy_(inputs.master_TV)


FORWARD: dict[str, Callable[[Inputs], Run]] = {
    "core": forward_core,
    "fused_linear": forward_fused_linear,
    "megatron_plus_entropy": forward_megatron_plus_entropy,
}


def prepare(inputs: Inputs) -> None:
    """Fresh logits, since the last run may have written over them; no tensor of it survives."""
    inputs.logits_TV = inputs.logits_TV.detach()
    inputs.logits_TV.copy_(inputs.master_TV)
    gc.collect()
    dist.barrier()


def time_once(name: str, inputs: Inputs) -> tuple[float, float]:
    """(forward, backward) milliseconds on this rank."""
    prepare(inputs)
    begin = time.perf_counter()
    if name == "floor":
        copy_shard(inputs)
        middle = time.perf_counter()
        copy_shard(inputs)
        return (middle - begin) * 1e3, (time.perf_counter() - middle) * 1e3
    run = FORWARD[name](inputs)
    forward_ms = (time.perf_counter() - begin) * 1e3
    dist.barrier()
    begin = time.perf_counter()
    backward(run, inputs)
    return forward_ms, (time.perf_counter() - begin) * 1e3


def measure_peak_bytes(name: str, inputs: Inputs) -> int:
    """High-water mark of one forward and backward over the resident set before (see module docstring)."""
    prepare(inputs)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    if not reset_resident_peak():
        raise RuntimeError(f"{CLEAR_REFS} cannot be written; memory is measured on Linux only, where a process may")
    before = resident_bytes()["VmRSS"]
    if name == "floor":
        copy_shard(inputs)
        returned = 0
    else:
        gradients = backward(FORWARD[name](inputs), inputs)
        returned = sum(gradient.nbytes for gradient in gradients) if name == "fused_linear" else 0
    return max(0, resident_bytes()["VmHWM"] - before - returned)


@contextlib.contextmanager
def counted_collectives() -> Iterator[list[str]]:
    """Names of the torch.distributed collectives called meanwhile."""
    prefixes = ("all_", "reduce", "broadcast", "gather", "scatter")
    names = [n for n in dir(dist) if n.startswith(prefixes) and callable(getattr(dist, n)) and n != "reduce_op"]
    originals = {name: getattr(dist, name) for name in names}
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](*args, **options)

        return call

    for name in names:
        setattr(dist, name, counted(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def count_and_compare(names: tuple[str, ...], inputs: Inputs, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """Collectives of each implementation; RuntimeError if two of them do not compute the same."""
    counts = {"floor": (0, 0)}
    expected: tuple[Tensor, ...] | None = None
    for name in names:
        if name == "floor":
            continue
        prepare(inputs)
        with counted_collectives() as forward_calls:
            run = FORWARD[name](inputs)
        with counted_collectives() as backward_calls:
            backward(run, inputs)
        counts[name] = (len(forward_calls), len(backward_calls))
        values = tuple(output.detach() for output in run.outputs)
        expected = expected or values
        # fused_linear does not round logits to bf16 and the others start from rounded ones: a logit above 16 is off by
        # up to 1/16 there, and the entropy of a peaked token by 0.12.
        tolerance = 0.25 if dtype == torch.bfloat16 else 1e-4
        worst = max(float((a - b).abs().max()) for a, b in zip(values, expected, strict=True))
        if not worst < tolerance:
            raise RuntimeError(f"{name} differs by {worst:.2e} in log-prob or entropy; expected below {tolerance}")
    return counts


def rank_main(rank: int, shape: Shape, names: tuple[str, ...], dtypes: tuple[str, ...], memory: bool, out: str) -> None:
    """One rank of one pass: times or memory. Writes its numbers to `out`/<rank>.json."""
    warnings.filterwarnings("ignore", "Transformer Engine and Apex are not installed")
    from megatron.core import parallel_state

    torch.set_num_threads(1)
    adapt_process_to_cpu()
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=shape.tensor)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=shape.tensor, create_gloo_process_groups=False)
    measure = measure_memory if memory else measure_times
    numbers = {dtype: measure(shape, names, dtype) for dtype in dtypes}
    Path(out, f"{rank}.json").write_text(json.dumps(numbers))
    dist.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def measure_times(shape: Shape, names: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """{name: {"runs": [(forward, backward) ms, ...], "collectives": (forward, backward)}}."""
    inputs = Inputs(shape, DTYPES[dtype])
    torch.zeros(HEAP_SHARDS * shape.shard_bytes, dtype=torch.uint8).fill_(1)
    counts = count_and_compare(names, inputs, DTYPES[dtype])
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(shape.repeats):
        for name in names:
            say(f"tensor {shape.tensor}, {dtype}, run {repeat + 1} of {shape.repeats}: {name}")
            runs[name].append(time_once(name, inputs))
    return {name: {"runs": runs[name], "collectives": counts[name]} for name in names}


def measure_memory(shape: Shape, names: tuple[str, ...], dtype: str) -> dict[str, float]:
    """{name: peak over the float32 shard}."""
    small = Shape(tokens=16, vocab=64 * shape.tensor, hidden=shape.hidden, tensor=shape.tensor, repeats=1)
    # Libraries load their code and start their threads at the first call.
    count_and_compare(names, Inputs(small, DTYPES[dtype]), DTYPES[dtype])
    inputs = Inputs(shape, DTYPES[dtype])
    peaks = {}
    for name in names:
        say(f"tensor {shape.tensor}, {dtype}, memory: {name}")
        peaks[name] = measure_peak_bytes(name, inputs) / shape.shard_bytes
    return peaks


def say(line: str) -> None:
    """Progress, from rank 0."""
    if dist.get_rank() == 0:
        print(line, file=sys.stderr, flush=True)


def run_ranks(shape: Shape, names: tuple[str, ...], dtypes: tuple[str, ...], *, memory: bool) -> list[dict[str, Any]]:
    """What each rank measured, in processes of their own."""
    settings = {"OMP_NUM_THREADS": "1"} | (MALLOC_FOR_MEMORY if memory else MALLOC_FOR_TIMES)
    saved = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        with tempfile.TemporaryDirectory() as out:
            arguments = (shape, names, dtypes, memory, out)
            torch.multiprocessing.start_processes(rank_main, arguments, nprocs=shape.tensor, start_method="spawn")
            return [json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(shape.tensor)]
    finally:
        for key, value in saved.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def bench(shape: Shape, names: tuple[str, ...], dtypes: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per implementation and dtype."""
    times = run_ranks(shape, names, dtypes, memory=False)
    peaks = run_ranks(shape, names, dtypes, memory=True)
    rows = []
    for dtype in dtypes:
        for name in names:
            by_rank = [rank[dtype][name] for rank in times]
            runs = torch.tensor([rank["runs"] for rank in by_rank])
            forward_ms, backward_ms = runs.amax(0).median(0).values.tolist()
            forward_calls, backward_calls = by_rank[0]["collectives"]
            rows.append(
                {
                    "implementation": name,
                    "dtype": dtype,
                    "tensor": shape.tensor,
                    "forward_ms": round(forward_ms, 2),
                    "backward_ms": round(backward_ms, 2),
                    "peak_extra_over_shard": round(max(rank[dtype][name] for rank in peaks), 4),
                    "collectives_forward": forward_calls,
                    "collectives_backward": backward_calls,
                }
            )
    return rows


def print_table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Rows with their ratios to the core of the same dtype and layout."""
    title = f"{arguments.tokens} tokens x {arguments.vocab} vocabulary, hidden size {arguments.hidden}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("implementation", "dtype", "TP"):
        table.add_column(column, no_wrap=True)
    for column in ("fwd", "bwd", "sum", "x core", "peak", "calls"):
        table.add_column(column, justify="right", no_wrap=True)
    table.caption = "fwd, bwd, sum: ms; peak: fp32 logits shards; calls: collectives forward + backward"
    core = {
        (row["dtype"], row["tensor"]): row["forward_ms"] + row["backward_ms"]
        for row in rows
        if row["implementation"] == "core"
    }
    for row in rows:
        total = row["forward_ms"] + row["backward_ms"]
        table.add_row(
            row["implementation"],
            row["dtype"],
            str(row["tensor"]),
            f"{row['forward_ms']:.0f}",
            f"{row['backward_ms']:.0f}",
            f"{total:.0f}",
            f"{total / core[row['dtype'], row['tensor']]:.2f}",
            f"{row['peak_extra_over_shard']:.3f}",
            f"{row['collectives_forward']}+{row['collectives_backward']}",
        )
    Console().print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help='print {"results": [...]} instead of a table')
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a micro-batch (default 1024)")
    parser.add_argument(
        "--vocab", type=int, default=151_936, help="vocabulary over all ranks (default 151936, Qwen2.5)"
    )
    parser.add_argument("--hidden", type=int, default=512, help="hidden size for fused_linear (default 512)")
    parser.add_argument("--repeats", type=int, default=MIN_REPEATS, help=f"timed runs, at least {MIN_REPEATS}")
    parser.add_argument("--tensor", default="1,2", help="tensor-parallel sizes, comma-separated (default 1,2)")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"of {', '.join(DTYPES)} (default all)")
    arguments = parser.parse_args(argv)
    try:
        arguments.tensor = tuple(int(size) for size in arguments.tensor.split(","))
    except ValueError:
        parser.error(f"--tensor takes numbers such as 1,2, found {arguments.tensor!r}")
    arguments.dtypes = tuple(arguments.dtypes.split(","))
    if unknown := set(arguments.dtypes) - set(DTYPES):
        parser.error(f"--dtypes takes {', '.join(DTYPES)}, found {', '.join(sorted(unknown))}")
    if arguments.repeats < MIN_REPEATS:
        parser.error(f"--repeats is {arguments.repeats}; a median needs at least {MIN_REPEATS}")
    if min(arguments.tokens, arguments.vocab, arguments.hidden, *arguments.tensor) < 1:
        parser.error("--tokens, --vocab, --hidden and --tensor must be at least 1")
    for tensor in arguments.tensor:
        if arguments.vocab % tensor:
            parser.error(f"--vocab {arguments.vocab} does not split over {tensor} ranks; Megatron needs equal shards")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if cuda_present():
        sys.exit("this measures the CPU, found a CUDA device; set CUDA_VISIBLE_DEVICES= to hide it")
    rows = []
    for tensor in arguments.tensor:
        shape = Shape(
            tokens=arguments.tokens,
            vocab=arguments.vocab,
            hidden=arguments.hidden,
            tensor=tensor,
            repeats=arguments.repeats,
        )
        rows += bench(shape, IMPLEMENTATIONS, arguments.dtypes)
    if arguments.json:
        print(json.dumps({"results": rows}, indent=2))
    else:
        print_table(rows, arguments)


if __name__ == "__main__":
    main()
