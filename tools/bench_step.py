"""A step of reinforcement learning on SmolLM2-135M by phase, on this machine: 64 responses of at most 48 tokens.

Each system is a real run, in turns: `after` is `megarl train` of this checkout on configs/smollm2-135m.toml, `before`
that of another checkout (--before) on its own file, `trl` TRL's GRPOTrainer with transformers' generate on the same
prompts (--trl-python). Sizes and dtype are the same for all: 8 prompts of 8 samples, one update a step. Seconds are
medians over the steps of all turns, without each run's first; `rest` is what a step has beyond its phases. TRL says its
generation with its rewards in it, and the rest of a step as `update`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path("configs") / "smollm2-135m.toml"
SMOLLM2 = ROOT / "models" / "smollm2-135m"
PROMPTS, SAMPLES, RESPONSE_TOKENS = 8, 8, 48
LR = 1e-6
"""Small, so that all systems answer as the checkpoint does."""
PHASES = ("generate", "reward", "old_logp", "update", "publish")
EXAMPLES = """examples:
  python tools/bench_step.py                                     # this checkout
  python tools/bench_step.py --before ../megarl-before --json    # beside another one, in turns
  python tools/bench_step.py --trl-python ~/trl/bin/python       # beside TRL, which that interpreter can import
  python tools/bench_step.py parallel.pipeline=2 parallel.world_size=2   # another layout of this checkout
"""

Step = dict[str, float | None]
"""Seconds by phase, `seconds` of the whole, and `response_tokens` on average."""


class RunFailedError(Exception):
    """A system did not finish; the text is the end of what it said."""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            rows = measure(options, options.model.resolve(), Path(scratch))
        except RunFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_table(Console(), rows)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="SmolLM2-135M as tools/smollm2.py writes it")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="steps of a run that count (default 3)")
    parser.add_argument("--turns", type=int, default=2, help="runs of each system, in turns (default 2)")
    parser.add_argument("--before", type=Path, help="checkout of another megarl, which this interpreter runs")
    parser.add_argument("--trl-python", type=Path, help="interpreter that imports trl")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="of this checkout's configuration")
    options = parser.parse_args(arguments)
    if min(options.steps, options.turns) < 1:
        parser.error("--steps and --turns must be at least 1")
    if options.before and not (options.before / CONFIG).is_file():
        parser.error(f"--before {options.before} is no checkout of megarl: it has no {CONFIG}")
    if options.trl_python and not shutil.which(options.trl_python):
        parser.error(f"--trl-python {options.trl_python} is not a program; give the path of a Python that has trl")
    if not (options.model / "config.json").is_file():
        parser.error(f"no checkpoint at {options.model}; make it: python tools/smollm2.py {options.model}")
    return options


def measure(options: argparse.Namespace, model: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each system, all of them run in turns."""
    systems = ["before"] * bool(options.before) + ["after"] + ["trl"] * bool(options.trl_python)
    steps: dict[str, list[Step]] = {system: [] for system in systems}
    layouts: dict[str, str] = {}
    for turn in range(options.turns):
        for system in systems if turn % 2 == 0 else reversed(systems):
            directory = scratch / f"{system}-{turn}"
            directory.mkdir()
            print(f"turn {turn + 1} of {options.turns}: {system}", file=sys.stderr)
            if system == "trl":
                layouts[system] = "one process"
                steps[system] += run_trl(options, model, directory)
            else:
                tree = ROOT if system == "after" else options.before.resolve()
                overrides = options.overrides if system == "after" else []
                run = run_megarl(tree, model, directory, dtype=options.dtype, steps=options.steps, overrides=overrides)
                layouts[system] = read_layout(run)
                steps[system] += read_steps(run)
    shared = {"model": model.name, "dtype": options.dtype}
    return [{"system": system, **shared, "layout": layouts[system], **medians(steps[system])} for system in systems]


def run_megarl(
    tree: Path, model: Path, directory: Path, *, dtype: str, steps: int, overrides: Sequence[str] = ()
) -> Path:
    """The directory of a finished `megarl train` of the checkout `tree`."""
    sizes = [
        f"model.path={model}",
        f"model.dtype={dtype}",
        f"train.steps={steps + 1}",
        f"train.prompts_per_step={PROMPTS}",
        f"train.samples_per_prompt={SAMPLES}",
        f"train.mini_batch_responses={PROMPTS * SAMPLES}",
        f"rollout.max_response_tokens={RESPONSE_TOKENS}",
        f"policy.optimizer.lr={LR}",
        "policy.optimizer.warmup_updates=0",
        f"logging.directory={directory}",
    ]
    command = [sys.executable, "-m", "megarl.cli.main", "train", str(tree / CONFIG), *sizes, *overrides]
    run_program(command, directory, python_path=str(tree))
    return directory / "latest"


def run_trl(options: argparse.Namespace, model: Path, directory: Path) -> list[Step]:
    """The steps of a run of tools/trl_step.py, without its first."""
    prompts = directory / "prompts.json"
    prompts.write_text(json.dumps(load_prompts(model)), encoding="utf-8")
    command = [str(options.trl_python), str(ROOT / "tools" / "trl_step.py"), str(model), str(prompts)]
    sizes = {
        "steps": options.steps + 1,
        "responses": PROMPTS * SAMPLES,
        "samples": SAMPLES,
        "response-tokens": RESPONSE_TOKENS,
        "lr": LR,
        "dtype": options.dtype,
    }
    command += [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    told = run_program(command, directory, python_path="")
    timed = json.loads(told.splitlines()[-1])[1:]
    return [dict.fromkeys(PHASES) | step | {"rest": None} for step in timed]


def load_prompts(model: Path) -> list[dict[str, str]]:
    """The run's own prompts, as text with the chat template around it, and answers."""
    from megarl.config.loader import load_config
    from megarl.data.prompts import load_prompts as load
    from megarl.data.tokenizer import load_tokenizer

    config = load_config(ROOT / CONFIG, [f"model.path={model}"])
    tokenizer = load_tokenizer(config.model.path)
    prompts = load(config.data, tokenizer, max_prompt_tokens=config.rollout.max_prompt_tokens)
    return [{"prompt": prompt.text, "answer": prompt.answer} for prompt in prompts]


def run_program(command: Sequence[str], directory: Path, *, python_path: str) -> str:
    """What it printed; RunFailedError with the end of it where it fails."""
    environment = {**os.environ, "PYTHONPATH": python_path}
    environment.pop("OMP_NUM_THREADS", None)  # each system has the machine as it would take it by itself
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    if done.returncode:
        raise RunFailedError(f"{' '.join(command[:5])} ...\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def read_steps(run: Path) -> list[Step]:
    """The steps of a run directory, without its first."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [read_step(json.loads(line)) for line in lines[1:]]


def read_step(values: dict[str, Any]) -> Step:
    phases: dict[str, float] = {phase: values.get(f"timing_s/{phase}") or 0.0 for phase in PHASES}
    whole = values["timing_s/step"]
    return {
        "seconds": whole,
        **phases,
        "rest": whole - sum(phases.values()),
        "response_tokens": values["response_length/mean"],
    }


def read_layout(run: Path) -> str:
    """How the run's policy was split."""
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    parallel = config["parallel"]
    return ", ".join(f"{name} {parallel[name]}" for name in ("world_size", "tensor", "pipeline"))


def medians(steps: Sequence[Step]) -> dict[str, Any]:
    """Of each number; None where a system does not tell it."""
    row: dict[str, Any] = {"steps": len(steps)}
    for name in steps[0]:
        values = [value for step in steps if (value := step[name]) is not None]
        row[name] = statistics.median(values) if values else None
    return row


def print_table(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    first = rows[0]
    table = Table(
        title=f"seconds of a step, {first['dtype']}, {first['model']}: medians",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("system")
    for header in ("steps", "tokens", *PHASES, "rest", "step"):
        table.add_column(header, justify="right")
    for row in rows:
        times = [_seconds(row[name]) for name in (*PHASES, "rest", "seconds")]
        table.add_row(row["system"], str(row["steps"]), f"{row['response_tokens']:.1f}", *times)
    console.print(table)
    for row in rows:
        console.print(f"{row['system']}: {row['layout']}")
    console.print("tokens: of a response, on average")
    (after,) = (row["seconds"] for row in rows if row["system"] == "after")
    for row in rows:
        if row["system"] != "after":
            console.print(f"{row['system']} takes {row['seconds'] / after:.2f} times as long")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
