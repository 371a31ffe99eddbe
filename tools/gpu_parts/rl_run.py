"""Whole RL runs by the command that a person types: rewards, and how far the trainer's log-probs are from vLLM's."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpu_parts.check import Check
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs" / "quickstart.toml"
LARGE = "qwen2.5-1.5b-instruct"
REQUIRED_GAIN = 0.15
"""Of the quickstart's mean reward, last five steps over first five; as tools/quickstart.py asks."""
LOGP_LIMITS = {"float32": 5e-3, "bfloat16": 0.1}
"""Mean |trainer - vLLM| log-prob: 1e-6 and 0.01 to 0.05 were measured on CPUs; on a GPU kernels differ more."""
SMALL = (
    *("train.steps=3", "train.prompts_per_step=12", "train.samples_per_prompt=8"),
    *("policy.optimizer.warmup_updates=1", "parallel.tensor=1", "parallel.world_size=1"),
)
TERMINATION_S = 20.0
"""Of the part's time, for a run that is not done to end its workers."""
LARGE_NEEDS_S = 60.0
MAPPED = "quickstart without staging"
MAPPED_NEEDS_S = 60.0


def run(check: Check) -> None:
    tiny = check.scratch / "models" / "quickstart"
    start(check, str(ROOT / "tools" / "make_tiny_model.py"), str(tiny), "--layers", "2")
    check.attempt("quickstart", run_quickstart, check, tiny)
    if check.small:
        check.say(f"{LARGE}: not run, it needs a GPU")
        return
    check.attempt(LARGE, run_large, check, tiny, need_s=LARGE_NEEDS_S)
    if check.gpus == 1:
        check.attempt(MAPPED, run_mapped, check, tiny, need_s=MAPPED_NEEDS_S)


def placement(gpus: int, *, tensor: int) -> list[str]:
    """Policy of `tensor` ranks, or one, and one engine, on the GPUs that there are."""
    if gpus == 0:
        return []
    ranks = tensor if gpus > tensor else 1
    placed = [f"parallel.tensor={ranks}", f"parallel.world_size={ranks}", f"cluster.gpus_per_node={gpus}"]
    return placed if gpus > 1 else [*placed, "cluster.colocate=true"]


def run_quickstart(check: Check, model: Path) -> None:
    """Warm start and training of configs/quickstart.toml; without a GPU three steps of the untrained model."""
    overrides = [*placement(check.gpus, tensor=2), *(SMALL if check.small else ())]
    started = time.monotonic()
    if not check.small:
        megarl(check, "sft", f"model.path={model}", *overrides)
        model = max((latest(check).path / "hf").glob("step-*"))
    megarl(check, "train", f"model.path={model}", *overrides)
    rows = read_metrics(latest(check).metrics_path)
    rewards = [row["reward/mean"] for row in rows]
    count = min(5, len(rewards))
    first, last = sum(rewards[:count]) / count, sum(rewards[-count:]) / count
    gain = {} if check.small else {"missing gain": (REQUIRED_GAIN - (last - first), 0.0)}
    judge_run(check, "quickstart", rows, "float32", gain, seconds=time.monotonic() - started, first=first, last=last)
    check.say(f"quickstart: mean reward of the first {count} steps {first:.3f}, of the last {last:.3f}")


def run_large(check: Check, tiny: Path) -> None:
    """Three steps of a 1.5B shape in bfloat16, random weights, the quickstart's tokenizer and random rewards."""
    model = make_large_model(check, tiny)
    started = time.monotonic()
    megarl(
        check, "train", "name=large", f"model.path={model}", "model.dtype=bfloat16",
        *placement(check.gpus, tensor=1), "policy.optimizer.lr=1e-6", "policy.optimizer.warmup_updates=0",
        'reward.verifier={kind="random",distribution="bernoulli",p=0.5}', "data.train.size=64", "train.steps=3",
        "train.prompts_per_step=64", "train.samples_per_prompt=8", "train.mini_batch_responses=128",
        "rollout.max_response_tokens=512", "rollout.publish.bucket_mib=64", "logging.rollouts_every=0",
    )  # fmt: skip
    rows = read_metrics(latest(check).metrics_path)
    judge_run(check, LARGE, rows, "bfloat16", {}, seconds=time.monotonic() - started)


def run_mapped(check: Check, model: Path) -> None:
    """Three steps of the quickstart's untrained model, whose engine reads the policy's weights where they lie."""
    started = time.monotonic()
    overrides = [*placement(check.gpus, tensor=1), *SMALL, "rollout.publish.staging=none"]
    megarl(check, "train", "name=mapped", f"model.path={model}", *overrides)
    rows = read_metrics(latest(check).metrics_path)
    judge_run(check, MAPPED, rows, "float32", {}, seconds=time.monotonic() - started)


def make_large_model(check: Check, tiny: Path) -> Path:
    """A directory with the shape's config.json, random bfloat16 weights, and the small model's tokenizer."""
    path = check.scratch / "models" / LARGE
    path.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny / file, path / file)
    shape = json.loads((ROOT / "configs" / "shapes" / f"{LARGE}.json").read_text(encoding="utf-8"))
    ends = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    tokens = {key: ends[key] for key in ("bos_token_id", "eos_token_id")}
    path.joinpath("config.json").write_text(json.dumps(shape | tokens), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, size in hf_tensors(read_model_shape(path)).items():
        values = torch.empty(size).normal_(0, 0.02, generator=generator)
        tensors[name] = (values + 1 if "norm" in name else values).bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def judge_run(
    check: Check,
    name: str,
    rows: list[dict[str, Any]],
    dtype: str,
    errors: dict[str, tuple[float, float]],
    **values: Any,
) -> None:
    """The run's numbers, its worst log-prob difference against the limit."""
    difference = max(row["rollout/logp_diff_mean"] for row in rows)
    seconds = [row["timing_s/step"] for row in rows]
    check.judge(
        name, errors | {"logp_diff_mean": (difference, LOGP_LIMITS[dtype])}, steps=len(rows),
        rewards=[row["reward/mean"] for row in rows], logp_diff_max=max(row["rollout/logp_diff_max"] for row in rows),
        step_s=seconds, **values,
    )  # fmt: skip
    check.say(
        f"{name}: {len(rows)} steps, {values['seconds']:.0f} s with its start, a step {min(seconds):.2f} s at best, "
        f"log-probs {difference:.1e} from vLLM's (mean, worst step)"
    )


def megarl(check: Check, verb: str, *overrides: str) -> None:
    start(check, "-m", "megarl.cli.main", verb, str(CONFIG), *overrides)


def start(check: Check, *command: str) -> None:
    """RuntimeError with the end of what it printed when it fails, or is not done in this part's time."""
    log = check.scratch / "command.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *command], cwd=check.scratch, stdout=out, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(max(1.0, check.left_s - TERMINATION_S))
        except subprocess.TimeoutExpired:
            # As Ctrl-C: the run ends its workers and keeps what it has.
            code = None
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATION_S - 3)
            process.kill()
            process.wait()
    if code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command[:4])}: {'not done in time' if code is None else code}\n{tail}")


def latest(check: Check) -> RunDirectory:
    return RunDirectory.open(check.scratch / "runs" / "latest")
