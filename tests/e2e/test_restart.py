"""A policy rank is killed, and the run goes on by itself: to the numbers of the run that nobody disturbed."""

import sys
from pathlib import Path

import pytest

from megarl.telemetry.restarts import read_failures
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl
from tests.e2e.resumed_runs import ROOT, exported, latest, metrics_of, rollouts_of, saved_state, train_to_the_end

STEPS = 4
ARGUMENTS = (f"train.steps={STEPS}", "checkpoint.every_steps=2", "cluster.restart_pause_s=1")
TIMEOUT_S = 800


def train_with_a_killed_rank(cwd: Path, config: Path, *, often: str) -> tuple[int, str]:
    """(exit code, what it said) of a run whose policy rank 1 is killed in step 3; nothing of it is left."""
    program = [sys.executable, ROOT / "tests" / "e2e" / "rank_killed_at.py", "3", often]
    with Megarl("train", config, *ARGUMENTS, cwd=cwd, program=program) as run:
        code = run.wait(TIMEOUT_S)
        assert run.leftovers() == []
        return code, run.text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_policy_rank_is_killed_goes_on_by_itself(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for cwd in (straight, killed):
        cwd.mkdir()
    train_to_the_end(config, *ARGUMENTS, cwd=straight)
    code, said = train_with_a_killed_rank(killed, config, often="once")
    assert code == 0, said
    assert "failed: policy rank 1 died" in said
    assert "restart  in 1 s the run goes on after step 2 (restart 1 of at most 5)" in said
    assert f"resume after step 2 of {STEPS}, from runs/" in said
    run, expected = latest(killed), latest(straight)
    assert [failure.step for failure in read_failures(run.restarts_path)] == [2]
    assert metrics_of(run) == metrics_of(expected)
    for step in range(1, STEPS + 1):
        assert rollouts_of(run, step) == rollouts_of(expected, step)
    assert exported(run) == exported(expected)
    assert saved_state(run) == saved_state(expected)
    assert run.read_state() == expected.read_state()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_step_that_kills_its_rank_twice_ends_the_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    code, said = train_with_a_killed_rank(tmp_path, write_tiny_config(tmp_path, tiny_model_dir), often="always")
    assert code == 1, said
    assert said.count("failed: policy rank 1 died") == 2
    assert "restart  step 3 failed twice in the same way; it would do so again" in said
    state = latest(tmp_path).read_state()
    assert (state.status, state.step, state.goes_on_s) == ("failed", 2, None)
