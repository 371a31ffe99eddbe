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
    command = [sys.executable, "-m", "megarl.cli.main", "submit", config.name, *BIG, "--dry-run"]
    environment = os.environ | {"PATH": "/nonexistent", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "Slurm was not asked: there is no sbatch on this machine\n")
    script = done.stdout
    for found, put in ((model, "/MODEL"), (directory, "/HERE"), (sys.prefix, "/PYTHON")):
        script = script.replace(str(found), put)
    return re.sub(r"tiny-\d{8}T\d{6}Z", "tiny-TIME", script)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, job in JOBS.items():
        (FOLDER / f"{name}.sbatch").write_text(render_script(job), encoding="utf-8")
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    from make_tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as directory:
        model = make_tiny_model(Path(directory) / "model")
        text = print_script(Path(directory), model)
    (FOLDER / f"{OF_A_CONFIGURATION}.sbatch").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
