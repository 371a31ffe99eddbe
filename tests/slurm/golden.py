"""The scripts that are kept as files. `python -m tests.slurm.golden` writes them anew; the commit says why."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from megarl.slurm.job import Job
from megarl.slurm.script import render_script
from tests.e2e.configuration import write_tiny_config
from tests.slurm.jobs import APPTAINER, CELLS, PYXIS, make_job

FOLDER = Path(__file__).parent / "golden"
JOBS: dict[str, Job] = {
    "64-nodes": make_job(),
    "sweep-on-cpu": make_job(
        nodes=2, gpus_per_node=0, time=None, partition=None, account=None, cells=CELLS, at_once=1, interface="ib0",
        sbatch=("--qos=high", "--exclude=n[3-4]"),
    ),
    "apptainer": make_job(nodes=1, environment=APPTAINER),
    "pyxis": make_job(environment=PYXIS, cells=CELLS),
    "warm-start": make_job(nodes=1, verb="sft"),
}  # fmt: skip


OF_A_CONFIGURATION = "64-nodes-of-a-configuration"
BIG = (
    "sft=false", "rollout.publish.transport=network", "parallel.world_size=256", "rollout.engines=256",
    "train.prompts_per_step=256", "train.samples_per_prompt=8", "train.mini_batch_responses=1024",
    "checkpoint.every_minutes=30", "--nodes", "64", "--gpus-per-node", "8", "--time", "24:00:00",
    "--partition", "gpu", "--account", "lab",
)  # fmt: skip


def print_script(directory: Path, model: Path) -> str:
    """`megarl submit --dry-run` of a configuration that uses 64 nodes, typed in `directory`; without what differs from
    one machine, and one second, to the next."""
    config = write_tiny_config(directory, model)
    return _print(directory, model, "submit", config.name, *BIG, "--dry-run")


OF_AN_ABLATION = "ablation"
ABLATION = """
name = "clip"
base = "tiny.toml"
fragments = ["wide.toml"]
seeds = [0, 1]
warm_start = true
[overrides]
parallel = { tensor = 1, world_size = 1 }
data.system_prompt = "it's $HOME"
[[settings]]
name = "plain"
[[settings]]
name = "narrow"
fragments = ["narrow.toml"]
"""


def print_array(directory: Path, model: Path) -> str:
    """Likewise `megarl ablate --slurm --dry-run`: settings with a fragment each, a shared warm start, two at a time."""
    write_tiny_config(directory, model)
    (directory / "clip.toml").write_text(ABLATION, encoding="utf-8")
    (directory / "wide.toml").write_text("[objective]\nclip = { low = 1.0 }\n", encoding="utf-8")
    (directory / "narrow.toml").write_text("[objective]\nclip = { high = 0.1 }\n", encoding="utf-8")
    options = ["--slurm", "--dry-run", "--gpus-per-node", "0", "--at-once", "2", "--time", "2:00:00"]
    return _print(directory, model, "ablate", "clip.toml", "train.steps=4", *options)


def _print(directory: Path, model: Path, *arguments: str) -> str:
    """A script that the command prints, without what differs from one machine, and one second, to the next."""
    command = [sys.executable, "-m", "megarl.cli.main", *arguments]
    environment = os.environ | {"PATH": "/nonexistent", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "Slurm was not asked: there is no sbatch on this machine\n")
    script = done.stdout
    for found, put in ((model, "/MODEL"), (directory, "/HERE"), (sys.prefix, "/PYTHON")):
        script = script.replace(str(found), put)
    return re.sub(r"(tiny|clip-ablation)-\d{8}T\d{6}Z", r"\1-TIME", script)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, job in JOBS.items():
        (FOLDER / f"{name}.sbatch").write_text(render_script(job), encoding="utf-8")
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    from make_tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as directory:
        model = make_tiny_model(Path(directory) / "model")
        texts = {
            OF_A_CONFIGURATION: print_script(Path(directory), model),
            OF_AN_ABLATION: print_array(Path(directory), model),
        }
    for name, text in texts.items():
        (FOLDER / f"{name}.sbatch").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
