"""What bounds scoring processes: hung answers side by side, memory, stopped processes, the environment."""

import os
import signal
import threading
import time

import pytest

from megarl.config.base import ConfigError
from megarl.config.reward import FunctionReward, MathVerifyReward, RewardConfig
from megarl.rewards import process
from megarl.rewards.environment import worker_environment
from megarl.rewards.item import RewardError
from megarl.rewards.pool import RewardPool
from megarl.rewards.turns import Turns
from megarl.rewards.verifiers import check_reward
from tests.rewards.test_reward_pool import DATA, MODULE, USER, make_pool, score, wait_until

SECRETS = [
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "RAY_AUTH_TOKEN",
    "OPENAI_API_KEY",
    "MY_SECRET",
    "DB_PASSWORD",
    "PGPASSWORD",
    "GITHUB_TOKEN",
    "SLACK_WEBHOOK_URL",
    "DATABASE_URL",
    "SSH_AUTH_SOCK",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CONDA_TOKEN",
    "PYTHON_KEYRING_SECRET",
    "LC_API_KEY",
]


def function(name: str, **fields: list[str]) -> FunctionReward:
    return FunctionReward(kind="function", path=f"{MODULE}:{name}", **fields)


def test_hung_answers_are_waited_for_side_by_side() -> None:
    """Twelve that hang for 6 s each, on two workers: one after the other they would take 36 s."""
    config = RewardConfig(verifier=USER, timeout_s=6.0, workers=2, spare_workers=12)
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        start = time.monotonic()
        scores = score(pool, *["sleep 600"] * 12, "ok", "ok")
        took = time.monotonic() - start
        assert [s.failure for s in scores] == ["timeout"] * 12 + [None] * 2
        assert took < 24.0
        # The spare ones are gone.
        assert len(pool.pids) == 2


def test_without_spare_workers_no_more_run_than_asked_for() -> None:
    config = RewardConfig(verifier=USER, timeout_s=1.0, workers=1, spare_workers=0)
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        start = time.monotonic()
        assert [s.failure for s in score(pool, "sleep 600", "sleep 600", "ok")] == ["timeout", "timeout", None]
        assert time.monotonic() - start >= 2.0
        assert len(pool.pids) == 1


def test_turns_double_while_answers_are_slow_up_to_the_most() -> None:
    turns = Turns(workers=2, spares=4)
    taken: list[object] = []

    def take_all() -> None:
        while (turn := turns.take()) is not None:
            taken.append(turn)

    thread = threading.Thread(target=take_all)
    thread.start()
    wait_until(lambda: len(taken) == 2)
    taken[0].mark_slow()  # its place and one more
    wait_until(lambda: len(taken) == 4)
    for turn in taken[1:4]:
        turn.mark_slow()
    wait_until(lambda: len(taken) == 6)  # workers + spares
    time.sleep(0.2)
    assert len(taken) == 6
    with taken[0]:
        pass
    wait_until(lambda: len(taken) == 7)
    turns.close()
    thread.join(10)
    assert not thread.is_alive()


def test_an_answer_that_wants_too_much_memory_is_wrong_and_ends_its_process() -> None:
    config = RewardConfig(verifier=function("allocates"), workers=1, memory_gib=0.25)
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        before = pool.pids
        scores = score(pool, "16", "100000", "16")
        assert [(s.reward, s.failure) for s in scores] == [(1.0, None), (0.0, "crash"), (1.0, None)]
        assert pool.pids != before


def test_math_that_does_not_fit_is_wrong() -> None:
    """Towers of powers and factorials, under the limits of time and memory."""
    config = RewardConfig(verifier=MathVerifyReward(kind="math_verify"), timeout_s=4.0, workers=1, memory_gib=1.0)
    nasty = (r"\boxed{10^{10^{10}}}", r"\boxed{(10^{9})!}", r"\boxed{\sum_{n=1}^{10^{12}} n^{n}}", r"\boxed{7}")
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        assert [s.reward for s in score(pool, *nasty)] == [0.0, 0.0, 0.0, 1.0]


def test_a_stopped_idle_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TAKEN_TIMEOUT_S", 1.0)
    with make_pool(USER, workers=1, timeout_s=5.0) as pool:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        assert [s.failure for s in score(pool, "ok")] == [None]
        assert pool.pids != [pid]


def test_a_stopped_worker_does_not_block_a_question_larger_than_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TAKEN_TIMEOUT_S", 1.0)
    with make_pool(USER, workers=1, timeout_s=5.0) as pool:
        os.kill(pool.pids[0], signal.SIGSTOP)
        start = time.monotonic()
        assert [s.failure for s in score(pool, "ok " + "x" * 10**7)] == [None]
        assert time.monotonic() - start < 20.0


def test_workers_that_never_take_a_question_end_the_run_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_ready = process.ScoringProcess.wait_ready

    def stop_when_ready(worker: process.ScoringProcess) -> None:
        wait_ready(worker)
        os.kill(worker.pid, signal.SIGSTOP)

    with make_pool(USER, workers=1) as pool:
        monkeypatch.setattr(process, "_TAKEN_TIMEOUT_S", 0.3)
        monkeypatch.setattr(process.ScoringProcess, "wait_ready", stop_when_ready)
        with pytest.raises(RewardError, match=r"stood still 3 times .* the last was process \d+"):
            score(pool, "ok")


@pytest.mark.parametrize("name", SECRETS)
def test_the_trainers_secrets_are_not_handed_on(name: str) -> None:
    assert worker_environment({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}
    assert worker_environment({name: "x"}, named=[name]) == {name: "x"}


def test_what_any_program_needs_is_handed_on() -> None:
    needed = dict.fromkeys(("PATH", "HOME", "PYTHONPATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"), "x")
    assert worker_environment(needed) == needed
    assert worker_environment({"https_proxy": "http://proxy:80", "http_proxy": "http://me:word@proxy:80"}) == {
        "https_proxy": "http://proxy:80"
    }


def test_a_function_sees_what_its_configuration_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "MY_KEY"):
        monkeypatch.setenv(name, "value")
    with make_pool(function("sees_variable", environment=["MY_KEY"])) as pool:
        assert [s.reward for s in score(pool, "MY_KEY", "PATH", *SECRETS)] == [1.0, 1.0] + [0.0] * len(SECRETS)


def test_a_named_variable_must_be_set() -> None:
    with pytest.raises(ConfigError, match="environment names NOT_SET_ANYWHERE, which the trainer"):
        check_reward(RewardConfig(verifier=function("sees_variable", environment=["NOT_SET_ANYWHERE"])))
