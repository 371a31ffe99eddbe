"""A run that is stopped, or loses a process: it says so, its files are readable, and nothing is left running."""

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.configuration import write_tiny_config
from tests.e2e.interrupting import (
    END_TIMEOUT_S,
    START_TIMEOUT_S,
    check_readable,
    holder_of,
    interrupt,
    start_training,
    wait_for_steps,
)
from tests.e2e.processes import Megarl


@pytest.mark.slow
def test_a_batch_system_s_signal_ends_the_run_in_order(tmp_path: Path, tiny_model_dir: Path) -> None:
    """As SIGINT does, see test_running."""
    with start_training(tmp_path, tiny_model_dir) as run:
        wait_for_steps(run)
        interrupt(run, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_while_data_loads_ends_the_run_at_once(
    number: signal.Signals, tmp_path: Path, tiny_model_dir: Path
) -> None:
    with (tmp_path / "data.jsonl").open("w") as file:
        file.writelines(
            f'{{"prompt": "What is {index} + {index}?", "answer": {2 * index}}}\n' for index in range(10**6)
        )
    data = 'data.train={source="file", path="data.jsonl", layout="prompt_answer"}'
    config = write_tiny_config(tmp_path, tiny_model_dir)
    with Megarl("train", config, data, 'reward.verifier={kind="gsm8k"}', cwd=tmp_path) as run:
        run.wait_for((tmp_path / "runs" / "latest" / "state.json").exists, START_TIMEOUT_S)
        time.sleep(2)  # a minute of loading lies ahead
        start_s = time.monotonic()
        run.send_signal(number)
        assert run.wait(END_TIMEOUT_S) == 130
        assert time.monotonic() - start_s < 15
        assert run.leftovers() == []
        state = run.directory.read_state()
        assert (state.status, state.message) == ("interrupted", "stopped by a signal")
        assert "Traceback" not in run.text


@pytest.mark.slow
def test_a_signal_during_the_start_ends_everything(tmp_path: Path, tiny_model_dir: Path) -> None:
    with start_training(tmp_path, tiny_model_dir) as run:
        run.wait_for(lambda: bool(run.find("ray::RolloutActor")), START_TIMEOUT_S)
        time.sleep(5)  # vLLM's own processes are starting now
        run.send_signal(signal.SIGINT)
        assert run.wait(END_TIMEOUT_S) == 130
        assert run.leftovers() == []
        assert run.directory.read_state().status == "interrupted"
        assert "Traceback" not in run.text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_policy_rank_is_named(rank: int, tmp_path: Path, tiny_model_dir: Path) -> None:
    with start_training(tmp_path, tiny_model_dir) as run:
        wait_for_steps(run)
        victim = holder_of(run, f"policy-{rank}.log")
        victim.kill()
        assert run.wait(END_TIMEOUT_S) == 1
        assert run.leftovers() == []
        state = run.directory.read_state()
        assert state.status == "failed"
        assert state.message is not None
        assert state.message.startswith(f"policy rank {rank} died")
        assert f"End of {run.directory.log_path('policy', rank)}:\n  | " in state.message
        assert state.message in run.text
        assert "Traceback" not in run.text.replace(state.message, "")
        check_readable(run)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["VLLM::EngineCore", "ray::RolloutActor"])
def test_a_killed_engine_is_named(words: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Its actor, or vLLM's process below it; where it is not to be started again."""
    with start_training(tmp_path, tiny_model_dir, "rollout.restarts=0") as run:
        wait_for_steps(run)
        run.find(words)[0].kill()
        assert run.wait(END_TIMEOUT_S) == 1
        processes = [found for found in run.leftovers() if found.startswith("process")]
        assert processes == []
        state = run.directory.read_state()
        assert state.status == "failed"
        assert state.message is not None
        assert state.message.startswith("rollout rank 0 ")
        assert "died" in state.message.splitlines()[0]
        assert f"End of {run.directory.log_path('rollout', 0)}:\n  | " in state.message
        assert state.message in run.text
        check_readable(run)
