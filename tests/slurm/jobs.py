"""Jobs for tests: everything given, nothing looked up."""

from pathlib import Path
from typing import Any

from megarl.slurm.job import Cell, Container, Job, NodeNeeds, Virtualenv

CELLS = (
    Cell(index=0, overrides=("train.seed=0", "name=tiny-0")),
    Cell(index=1, overrides=("train.seed=1", "name=tiny-1")),
)
APPTAINER = Container(image="/images/megarl.sif", runtime="apptainer", mounts=("/shared:/shared", "/data 1:/data 1"))
PYXIS = Container(image="/images/megarl.sqsh", runtime="pyxis", mounts=("/shared:/shared",))


def make_job(**changes: Any) -> Job:
    """A run on 64 nodes of eight GPUs."""
    directory = Path("/shared/runs/jobs/tiny-20261128T140000Z")
    facts: dict[str, Any] = {
        "name": "tiny",
        "command": "megarl submit tiny.toml 'data.system_prompt=it'\"'\"'s $HOME' --nodes 64 --time 1-12:00:00",
        "directory": directory,
        "working_directory": Path("/shared/code"),
        "environment": Virtualenv(directory=Path("/shared/code/.venv")),
        "train": (f"{directory}/tiny.toml", "data.system_prompt=it's $HOME", "cluster.nodes=64"),
        "nodes": 64,
        "gpus_per_node": 8,
        "workers_per_node": 8,
        "paths": (Path("/shared/models/tiny"), Path("/shared/runs")),
        "needs": NodeNeeds(shm_gib=16.0, scratch_gib=20.0),
        "stop_within_s": 600,
        "end_margin_s": 120,
        "restarts": 5,
        "time": "1-12:00:00",
        "partition": "gpu",
        "account": "lab",
    }
    return Job(**(facts | changes))
