"""Policy and engine in turns (cluster.colocate) train as a policy and an engine beside each other do."""

import sys
from pathlib import Path

import pytest

from megarl.telemetry.names import MEMORY_PHASES, memory_name
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import ROOT, metrics_of, rollouts_of
from tests.e2e.test_engine_restart import without_counts

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
    for run in directory, apart:
        check_memory(run, in_turns=run is directory)
    for step in range(1, STEPS + 1):
        assert len(rollouts_of(directory, step)) == 16
        assert rollouts_of(directory, step) == rollouts_of(apart, step)
    assert NO_SLEEP in directory.log_path("rollout", 0).read_text()
    assert (directory.checkpoints / "step-000002").is_dir()


def check_memory(run: RunDirectory, *, in_turns: bool) -> None:
    """Every step has the memory of the phases that such a run has, the most at once and what stays; of no GPU."""
    phases = [(role, phase) for role, of_role in MEMORY_PHASES.items() for phase in of_role]
    if not in_turns:
        phases = [(role, phase) for role, phase in phases if phase not in ("sleep", "wake")]
    expected = {memory_name(role, phase, kind) for role, phase in phases for kind in ("max", "end")}
    for row in read_metrics(run.metrics_path):
        sizes = {name: size for name, size in row.items() if name.startswith("memory/")}
        if "reward/mean" in row:
            assert set(sizes) == expected
            assert all(size is not None and 0.1 < size < 16 for size in sizes.values()), sizes
    page = run.report_path.read_text()
    assert "id='figure-memory_by_phase'" in page
    assert "This run was on a CPU, and megarl plan plans for GPUs" in page
    assert "There is no plan" not in page


def test_an_engine_that_dies_asleep_costs_nothing(apart: RunDirectory, tmp_path: Path, tiny_model_dir: Path) -> None:
    """It is started again when the policy has given way, and has the new weights before anybody samples."""
    program = [sys.executable, ROOT / "tests" / "e2e" / "losing_engines.py", "2 asleep core-0 SIGKILL"]
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("train", config, *TURNS, cwd=tmp_path, program=program) as run:
        assert run.wait(600) == 0, run.text
        assert run.leftovers() == []
        text, directory = run.text, run.directory
    rows = metrics_of(directory)
    restarts = {row["step"]: row["rollout/restarts"] for row in rows if "rollout/restarts" in row}
    assert restarts == {2: 1}
    assert [row["rollout/regenerated"] for row in rows if "rollout/regenerated" in row] == [0.0], "nothing was lost"
    assert without_counts(rows) == metrics_of(apart)
    assert rollouts_of(directory, STEPS) == rollouts_of(apart, STEPS)
    assert "rollout rank 0 is started again (1 of 3, rollout.restarts)" in text
