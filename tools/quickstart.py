"""The first run, as three commands a person could type: make a small model, warm it up, train it by RLVR.

Ends with the mean reward of the first and the last five steps, and with exit code 1 when it rose by less than 0.15.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics

CONFIG = "configs/quickstart.toml"
MODEL = Path("models/quickstart")
REQUIRED_GAIN = 0.15


def main() -> int:
    started_s = time.monotonic()
    python, megarl = sys.executable, str(Path(sys.executable).with_name("megarl"))
    run(python, "tools/make_tiny_model.py", str(MODEL), "--layers", "2")
    run(megarl, "sft", CONFIG, f"model.path={MODEL}")
    warm = latest_checkpoint()
    run(megarl, "train", CONFIG, f"model.path={warm}")
    directory = RunDirectory.open("runs/latest")
    rewards = [row["reward/mean"] for row in read_metrics(directory.metrics_path)]
    first, last = mean(rewards[:5]), mean(rewards[-5:])
    print(f"\nmean reward  first 5 steps {first:.3f}, last 5 steps {last:.3f}: {last - first:+.3f}")
    print(f"seconds      {time.monotonic() - started_s:.0f}, set-up not counted")
    print(f"look at      {directory.report_path} (figures), {directory.rollouts} (every response, parquet)")
    if last - first < REQUIRED_GAIN:
        print(f"the reward was expected to rise by at least {REQUIRED_GAIN}", file=sys.stderr)
        return 1
    return 0


def run(*command: str) -> None:
    """Show the command, run it, and end with its exit code when it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def latest_checkpoint() -> Path:
    """The Hugging Face checkpoint of the run that just ended."""
    checkpoints = sorted(Path("runs/latest").resolve().glob("hf/step-*"))
    if not checkpoints:
        raise SystemExit("the warm start left no checkpoint; see its messages above")
    return checkpoints[-1].relative_to(Path.cwd())


def mean(values: list[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    sys.exit(main())
