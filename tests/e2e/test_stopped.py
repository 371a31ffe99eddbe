"""A process of a run that does not go on, though it is not gone: the run ends in set time, names it, leaves nothing."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from megarl.telemetry.heartbeat import read_heartbeat
from tests.e2e.configuration import write_tiny_config
from tests.e2e.interrupting import ENDLESS, holder_of, wait_for_steps
from tests.e2e.processes import Megarl

END_TIMEOUT_S = 120
SHORT = ["rollout.restarts=0", "rollout.stall_timeout_s=30", "cluster.worker_silence_s=20"]
"""Long enough for the imports and first steps of a busy machine, during which nothing moves for seconds."""


def stop_and_wait(run: Megarl, victim: psutil.Process) -> str:
    """Stop it and return the message with which the run ended."""
    victim.suspend()
    assert run.wait(END_TIMEOUT_S) == 1, run.text
    assert not victim.is_running()
    assert run.leftovers() == []
    state = run.directory.read_state()
    assert state.status == "failed"
    assert state.message is not None
    assert state.message in run.text
    assert "Traceback" not in run.text.replace(state.message, "")
    assert run.directory.report_path.exists()
    assert f"\nTheir stacks: {run_stacks(run)}" in state.message
    return state.message


def run_stacks(run: Megarl) -> Path:
    """The file of everybody's phase and stacks."""
    (file,) = run.directory.logs.glob("stacks-2*.txt")
    return file


def engine_stacks(run: Megarl) -> str:
    """What the engine wrote of its own processes before it ended them."""
    (file,) = run.directory.logs.glob("stacks-rollout-0-*.txt")
    assert str(file) in run.text
    return file.read_text()


@pytest.mark.slow
def test_a_stopped_engine_core_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    with Megarl("train", write_tiny_config(tmp_path, tiny_model_dir), ENDLESS, *SHORT, cwd=tmp_path) as run:
        wait_for_steps(run)
        (core,) = run.find("VLLM::EngineCore")
        message = stop_and_wait(run, core)
        told = engine_stacks(run)
    first = message.splitlines()[0]
    assert first.startswith("rollout rank 0 raised EngineError: engine 0 cannot go on: ")
    assert "(rollout.stall_timeout_s)" in first
    assert f"process {core.pid} (VLLM::EngineCor" in told
    assert "it is stopped (by SIGSTOP)" in told
    # The requests wait for it, or the next weights, by the moment in which it was stopped.
    assert "in sample" in told or "in _call_workers" in told


@pytest.mark.slow
def test_a_stopped_engine_actor_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    with Megarl("train", write_tiny_config(tmp_path, tiny_model_dir), ENDLESS, *SHORT, cwd=tmp_path) as run:
        wait_for_steps(run)
        (actor,) = run.find("ray::RolloutActor")
        message = stop_and_wait(run, actor)
    first = message.splitlines()[0]
    assert first.startswith("rollout rank 0 did not ")
    assert f"it has not answered for 20 s (cluster.worker_silence_s); its process {actor.pid} on " in first
    assert first.endswith("is stopped (by SIGSTOP)")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_policy_rank_is_named(rank: int, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Not the other one, which waits for it in a collective."""
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("sft", config, "sft.steps=1000000", *SHORT, cwd=tmp_path) as run:
        wait_for_steps(run)
        victim = holder_of(run, f"policy-{rank}.log")
        message = stop_and_wait(run, victim)
        heartbeat = read_heartbeat(run.directory.heartbeat_path)
        _, _, _, *of_ranks = run_stacks(run).read_text().split("\n\n")
    first = message.splitlines()[0]
    assert first.startswith(f"policy rank {rank} did not ")
    assert f"its process {victim.pid} on " in first
    assert first.endswith("is stopped (by SIGSTOP)")
    # Where the other one waits for it.
    assert f"policy rank {rank}\nit is stopped (by SIGSTOP)" in of_ranks[rank]
    assert "megarl/policy/" in of_ranks[1 - rank]
    assert heartbeat is not None
    assert [beat.role for beat in heartbeat.processes] == ["controller", "policy", "policy"]
    assert heartbeat.processes[1 + rank].pid == victim.pid


@pytest.mark.slow
def test_a_stopped_worker_of_vllm_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = write_tiny_config(tmp_path, tiny_model_dir)
    # Two workers' first step takes its time.
    patient = "rollout.stall_timeout_s=60"
    with Megarl("train", config, ENDLESS, *SHORT, patient, "rollout.tensor=2", cwd=tmp_path) as run:
        wait_for_steps(run)
        worker = run.find("VLLM::Worker_TP1")[0]
        message = stop_and_wait(run, worker)
        told = engine_stacks(run)
    assert f"process {worker.pid} (VLLM::Worker_TP1)\n  it is stopped (by SIGSTOP)" in told
    assert "in run_busy_loop" in told  # the core waits for its worker, which has one too
    assert message.startswith("rollout rank 0 raised EngineError: engine 0 cannot go on: ")
    assert "(rollout.stall_timeout_s)" in message.splitlines()[0]


@pytest.mark.slow
def test_a_third_signal_ends_everything_at_once(tmp_path: Path, tiny_model_dir: Path) -> None:
    with Megarl("train", write_tiny_config(tmp_path, tiny_model_dir), ENDLESS, cwd=tmp_path) as run:
        wait_for_steps(run, 1)
        for _ in range(3):
            run.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        started = time.monotonic()
        assert run.wait(30) == 130
        assert time.monotonic() - started < 25
        assert run.leftovers() == []
        state = run.directory.read_state()
        assert (state.status, state.message) == ("interrupted", "stopped by a third signal")
        assert "once more ends them at once" in run.text
        assert "Traceback" not in run.text
