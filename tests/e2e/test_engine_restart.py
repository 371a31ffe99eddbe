"""Engines that are killed or stopped while they sample, or while weights are published: the run goes on as if nothing
had happened. No response is lost or doubled, and every token and number is that of a run that loses no engine.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import ROOT, metrics_of, rollouts_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 4
RESPONSES = 16
RUN = (
    f"train.steps={STEPS}",
    "parallel.tensor=1",
    "parallel.world_size=1",
    "rollout.engines=2",
    # Responses come one after the other, so that an engine owes some when it has answered others.
    "rollout.max_response_tokens=32",
    "rollout.vllm_overrides={max_num_seqs=2}",
    # Long enough for the first steps of a busy machine, during which nothing moves for seconds.
    "rollout.stall_timeout_s=30",
    "cluster.worker_silence_s=20",
    "rollout.publish.timeout_s=30",
)
END_TIMEOUT_S = 1200
LOST = {
    "killed": ("2 generate core-1 SIGKILL, 3 generate actor-0 SIGKILL, 3 publish core-1 SIGKILL", {2: 1, 3: 2}),
    "stopped": ("2 generate core-1 SIGSTOP, 3 generate actor-0 SIGSTOP", {2: 1, 3: 1}),
}
"""What happens, and how many engines are started again in each step."""
COUNTS = "rollout/re"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> RunDirectory:
    cwd = tmp_path_factory.mktemp("undisturbed")
    with Megarl("train", write_tiny_config(cwd, tiny_model_dir), *RUN, cwd=cwd) as run:
        assert run.wait(END_TIMEOUT_S) == 0, run.text
        return run.directory


def without_counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(COUNTS)} for row in rows]


@pytest.mark.parametrize("name", LOST)
def test_a_run_that_loses_engines_ends_as_one_that_does_not(
    name: str, undisturbed: RunDirectory, tmp_path: Path, tiny_model_dir: Path
) -> None:
    plan, restarts = LOST[name]
    program = [sys.executable, ROOT / "tests" / "e2e" / "losing_engines.py", plan]
    with Megarl("train", write_tiny_config(tmp_path, tiny_model_dir), *RUN, cwd=tmp_path, program=program) as run:
        assert run.wait(END_TIMEOUT_S) == 0, run.text
        assert run.leftovers() == []
        text, directory = run.text, run.directory
    rows = metrics_of(directory)
    steps = {row["step"]: row for row in rows if "rollout/restarts" in row}
    assert {step: row["rollout/restarts"] for step, row in steps.items()} == restarts
    for step in (2, 3):
        row = steps[step]
        assert 0 < row["rollout/regenerated"] < RESPONSES
        assert (row["rollout/regenerated_compared"], row["rollout/regenerated_differences"]) == (4, 0)
        assert f"{row['rollout/regenerated']:.0f} of {RESPONSES} responses are sampled again: rollout rank " in text
    assert "rollout rank 1 is started again (1 of 3, rollout.restarts) while the others go on: rollout rank 1 " in text
    for step in range(1, STEPS + 1):
        assert len(rollouts_of(directory, step)) == RESPONSES
        assert rollouts_of(directory, step) == rollouts_of(undisturbed, step)
    assert without_counts(rows) == metrics_of(undisturbed)
