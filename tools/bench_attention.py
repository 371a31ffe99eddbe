"""Attention over packed sequences on a CPU: batched products against a call for each sequence, forward and backward.

A row is a micro-batch of sequences of one length. The columns are CPU milliseconds a layer, medians, one thread:
`batched` is what megarl.parallel.packed_attention does with short sequences, `each` with long ones. LONGEST_BATCHED
there is where `each` becomes the faster one in float32 and bfloat16.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from megarl.parallel import packed_attention
from megarl.parallel.packed_attention import attend_packed

HEADS = {"smollm2-135m": (9, 3, 64), "qwen2.5-0.5b": (14, 2, 64), "own keys": (16, 16, 64)}
LENGTHS = (16, 48, 64, 96, 128, 192, 256, 512)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXAMPLES = """examples:
  python tools/bench_attention.py                            # a table; about two minutes
  python tools/bench_attention.py --json                     # the same as JSON
  python tools/bench_attention.py --lengths 48 --tokens 3072 # a micro-batch of 64 sequences
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    rows = [
        measure(heads, length, dtype, tokens=options.tokens, repeats=options.repeats)
        for heads in HEADS
        for dtype in DTYPES
        for length in options.lengths
    ]
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_table(rows)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="tokens a sequence (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=2048, help="tokens of a micro-batch, about (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(*options.lengths, options.tokens, options.repeats) < 1:
        parser.error("--lengths, --tokens and --repeats must be at least 1")
    return options


def measure(heads: str, length: int, dtype: str, *, tokens: int, repeats: int) -> dict[str, Any]:
    num, groups, size = HEADS[heads]
    count = max(1, tokens // length)
    torch.manual_seed(0)
    shapes = ((num, size), (groups, size), (groups, size))
    operands = [torch.randn(count * length, *shape).to(DTYPES[dtype]).requires_grad_() for shape in shapes]
    grad = torch.randn(count * length, num, size).to(DTYPES[dtype])

    def run() -> None:
        torch.autograd.grad(attend_packed(*operands, (length,) * count, scale=size**-0.5), operands, grad)

    seconds = time_in_turns(
        {"batched": lambda: with_longest(length, run), "each": lambda: with_longest(0, run)}, repeats
    )
    row = {"heads": heads, "dtype": dtype, "length": length, "sequences": count}
    return {**row, **{f"{way}_ms": 1e3 * value for way, value in seconds.items()}}


def with_longest(longest: int, run: Callable[[], None]) -> None:
    """Batch sequences up to this length."""
    before = packed_attention.LONGEST_BATCHED
    packed_attention.LONGEST_BATCHED = longest
    packed_attention._plan.cache_clear()
    try:
        run()
    finally:
        packed_attention.LONGEST_BATCHED = before
        packed_attention._plan.cache_clear()


def time_in_turns(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each; the first turn does not count."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, run in ways.items():
            started_s = time.process_time()
            run()
            if turn:
                seconds[way].append(time.process_time() - started_s)
    return {way: statistics.median(values) for way, values in seconds.items()}


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="attention of a layer, forward and backward, one thread")
    for header in ("heads", "dtype", "length", "sequences", "batched ms", "each ms", "each / batched"):
        table.add_column(header, justify="left" if header in ("heads", "dtype") else "right")
    for row in rows:
        times = (f"{row['batched_ms']:.1f}", f"{row['each_ms']:.1f}", f"{row['each_ms'] / row['batched_ms']:.2f}")
        table.add_row(row["heads"], row["dtype"], str(row["length"]), str(row["sequences"]), *times)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
