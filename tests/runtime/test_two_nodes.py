"""The plan of placement is what real Ray does with it, on two nodes of unequal size."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "MEGARL_TEST_TWO_NODES"
TIMEOUT_S = 300.0


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that were started below the one with this mark in its environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


@pytest.mark.slow
def test_workers_are_on_the_nodes_of_the_plan() -> None:
    """Ranks 0 and 1 fill the node of 2, whichever comes first; 2 and 3 share the other with the engine. A second run
    finds no room, and one whose tensor group fits no node, and no block of Slurm's topology, is refused at once."""
    mark = uuid.uuid4().hex
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.runtime.two_nodes"]
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, because sockets are made below it
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment | {MARK: mark, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": directory},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        left = [f"{process.pid} {process.name()}" for process in marked(mark)]
        assert left == []
    finally:
        for process in marked(mark):
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["cpus"] == [2, 2, 3, 3, 3]
    assert result["domains"] == {"3": "block b2", "2": "block b1"}
    assert result["full"].startswith(
        "the Ray cluster cannot place 4 policy ranks and 1 engines of 1: needed 5 CPU, found 0 CPU free on 2 nodes\n"
        "  missing: 5 CPU in all\n"
        "  missing: room on one node for a tensor-parallel group of 2 policy ranks (parallel.tensor)\n"
        "  missing: one node with 1 CPU free for an engine (rollout.tensor 1)\n"
    )
    # Neighbours in the network come together: block b1 is first.
    nodes = [line.partition(": ")[2] for line in result["full"].splitlines()[-3:-1]]
    assert nodes == ["0 of 2 CPU free", "0 of 3 CPU free"]
    assert "missing: room on one node for a tensor-parallel group of 4 policy ranks" in result["scattered"]
    assert "the most is 3 ranks" in result["scattered"]
