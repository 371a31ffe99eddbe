"""Policy and engine in turns (cluster.colocate) train as a policy and an engine beside each other do."""

from pathlib import Path

import pytest

from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import metrics_of, rollouts_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TURNS = ("cluster.colocate=true", "cluster.gpus_per_node=2", "rollout.engines=1", "checkpoint.every_steps=2")
STEPS = 3
NO_SLEEP = "vLLM's CPU build has no sleep mode"


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> RunDirectory:
    cwd = tmp_path_factory.mktemp("apart")
    with Megarl("train", write_tiny_config(cwd, tiny_model_dir), cwd=cwd) as run:
        assert run.wait(600) == 0, run.text
        return run.directory


def test_in_turns_as_apart(apart: RunDirectory, tmp_path: Path, tiny_model_dir: Path) -> None:
    """An engine on the place of one of two ranks, which are all that there are. A checkpoint is written on the way,
    while most of what it saves lies in the host's copy."""
    with Megarl("train", write_tiny_config(tmp_path, tiny_model_dir), *TURNS, cwd=tmp_path) as run:
        assert run.wait(600) == 0, run.text
        assert run.leftovers() == []
        directory = run.directory
    assert [row["step"] for row in metrics_of(directory) if "reward/mean" in row] == list(range(1, STEPS + 1))
    assert metrics_of(directory) == metrics_of(apart)
    for step in range(1, STEPS + 1):
        assert len(rollouts_of(directory, step)) == 16
        assert rollouts_of(directory, step) == rollouts_of(apart, step)
    assert NO_SLEEP in directory.log_path("rollout", 0).read_text()
    assert (directory.checkpoints / "step-000002").is_dir()
