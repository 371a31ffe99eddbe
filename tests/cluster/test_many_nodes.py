"""Jobs of 64 nodes of eight GPUs, up to what Slurm's controller says of them; there are no such nodes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megarl.slurm.queue import find_queued, try_script
from megarl.slurm.script import render_script
from tests.cluster.controller import ManyNodes, describe_missing, run
from tests.e2e.configuration import write_tiny_config
from tests.slurm.golden import BIG, JOBS
from tests.slurm.jobs import make_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(describe_missing() is not None, reason=f"no Slurm here: {describe_missing()}"),
]
WORDS = "on nodes n[1-64] in partition gpu"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ManyNodes]:
    with ManyNodes() as nodes:
        yield nodes
    assert not nodes.directory.exists()
    assert "SLURM_CONF" not in os.environ


def submit(cwd: Path, model: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    config = write_tiny_config(cwd, model)
    command = [sys.executable, "-m", "megarl.cli.main", "submit", config.name, *BIG, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("name", ["64-nodes", "apptainer", "pyxis"])
def test_the_kept_scripts_for_gpus_are_taken(cluster: ManyNodes, name: str) -> None:
    taken, words = try_script(render_script(JOBS[name]))
    assert taken, words
    assert ("on nodes n1 in partition gpu" if name == "apptainer" else WORDS) in words


@pytest.mark.parametrize("changes", [{"nodes": 65}, {"gpus_per_node": 9}, {"partition": "other"}])
def test_what_the_cluster_does_not_have_is_refused(cluster: ManyNodes, changes: dict[str, Any]) -> None:
    taken, words = try_script(render_script(make_job(**changes)))
    assert not taken
    expected = "invalid partition" if "partition" in changes else "Requested node configuration is not available"
    assert expected in words


def test_a_dry_run_shows_the_script_and_where_it_would_run(
    cluster: ManyNodes, tmp_path: Path, tiny_model_dir: Path
) -> None:
    done = submit(tmp_path, tiny_model_dir, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Slurm: Job ")
    assert WORDS in done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert not (tmp_path / "runs").exists()


def test_one_node_more_is_refused_and_leaves_nothing(cluster: ManyNodes, tmp_path: Path, tiny_model_dir: Path) -> None:
    """As the configuration has it: 264 engines and 256 policy ranks fill 65 nodes."""
    more = ("rollout.engines=264", "--nodes", "65")
    done = submit(tmp_path, tiny_model_dir, *more, "--dry-run")
    assert done.returncode == 1
    assert done.stderr == "Slurm: allocation failure: Requested node configuration is not available\n"
    done = submit(tmp_path, tiny_model_dir, *more)
    assert done.returncode == 2
    assert "Slurm does not take the job: allocation failure: Requested node configuration" in done.stderr
    assert list((tmp_path / "runs" / "jobs").iterdir()) == []


def test_a_submitted_job_of_64_nodes_is_in_the_queue(cluster: ManyNodes, tmp_path: Path, tiny_model_dir: Path) -> None:
    done = submit(tmp_path, tiny_model_dir, "--sbatch=--begin=now+1hour")
    assert done.returncode == 0, done.stderr
    assert WORDS in done.stdout
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    number = facts["submitted"].split()[1].rstrip(":")
    assert facts["submitted"] == f"job {number}: tiny on 64 nodes"
    queued = find_queued(number)[number]
    assert (queued.state, queued.reason) == ("PENDING", "BeginTime")
    asked = run("scontrol", "show", "job", number)
    assert "NumNodes=64-64" in asked
    assert "TresPerNode=gres:gpu:8" in asked
    run("scancel", number)
