"""The pool: real processes that hang, crash, raise and are left behind by a dead parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, ReasoningGymData
from megarl.config.reward import (
    FunctionReward,
    Gsm8kReward,
    MathVerifyReward,
    OverlongConfig,
    RandomReward,
    ReasoningGymReward,
    RewardConfig,
    Verifier,
)
from megarl.records import Prompt, Score
from megarl.rewards.item import RewardError, RewardItem
from megarl.rewards.pool import RewardPool
from megarl.rewards.verifiers import check_reward
from tests.rewards.scoring import score_all

MODULE = "tests.rewards.user_rewards"
USER = FunctionReward(kind="function", path=f"{MODULE}:by_command")
DATA = DataConfig(train=ReasoningGymData(task="chain_sum", size=4, options={"min_terms": 2, "max_terms": 2}))


def make_item(response: str, *, answer: str = "7", index: int = 0, sample: int = 0, tokens: int = 10) -> RewardItem:
    prompt = Prompt(index=index, text="3 + 4 =", token_ids=(1,), answer=answer)
    return RewardItem(prompt=prompt, response=response, response_tokens=tokens, prompt_index=index, sample_index=sample)


def make_pool(verifier: Verifier, *, timeout_s: float = 20.0, workers: int = 1, seed: int = 0) -> RewardPool:
    config = RewardConfig(verifier=verifier, timeout_s=timeout_s, workers=workers)
    return RewardPool(config, DATA, max_response_tokens=100, seed=seed)


def score(pool: RewardPool, *responses: str) -> list[Score]:
    return asyncio.run(score_all(pool, [make_item(text, sample=i) for i, text in enumerate(responses)]))


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "still not true"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def user_pool() -> Iterator[RewardPool]:
    with make_pool(USER, workers=2, timeout_s=1.5) as pool:
        yield pool


def test_scores_come_in_order_whatever_finishes_first(user_pool: RewardPool) -> None:
    items = [
        make_item("sleep 0.3", sample=0),
        make_item("answer", answer="0.5", sample=1),
        make_item("numpy", sample=2),
        make_item("print", sample=3),
    ]
    scores = asyncio.run(score_all(user_pool, items))
    assert [s.verifier for s in scores] == [1.0, 0.5, 0.25, 1.0]
    assert [s.failure for s in scores] == [None] * 4
    assert asyncio.run(score_all(user_pool, [])) == []


def test_worker_never_imports_torch(user_pool: RewardPool) -> None:
    assert score(user_pool, "torch")[0].verifier == 0.0


@pytest.mark.parametrize("hang", ["sleep 600", "hold_lock"])
def test_hang_costs_its_time_limit_and_only_its_own_answer(user_pool: RewardPool, hang: str) -> None:
    before = set(user_pool.pids)
    start = time.monotonic()
    scores = score(user_pool, hang, "ok", "ok")
    assert 1.5 <= time.monotonic() - start < 4.0
    assert [(s.reward, s.failure) for s in scores] == [(0.0, "timeout"), (1.0, None), (1.0, None)]
    replaced = before - set(user_pool.pids)
    assert len(replaced) == 1
    assert not is_running(replaced.pop())
    assert score(user_pool, "ok", "ok", "ok")[2].verifier == 1.0


def test_crash_scores_zero_and_the_worker_is_replaced(user_pool: RewardPool) -> None:
    scores = score(user_pool, "exit 3", "ok", "exit 0", "ok")
    assert [(s.reward, s.failure) for s in scores] == [(0.0, "crash"), (1.0, None), (0.0, "crash"), (1.0, None)]


def test_worker_that_dies_while_idle_costs_no_answer(user_pool: RewardPool) -> None:
    for pid in user_pool.pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in user_pool.pids))
    assert [s.failure for s in score(user_pool, "ok", "ok", "ok")] == [None] * 3


def test_worker_that_dies_before_it_reads_the_question_costs_no_answer() -> None:
    """Its socket takes the question, as that of a dying process may; a stopped one makes that last."""
    with make_pool(USER, workers=1, timeout_s=5.0) as pool, ThreadPoolExecutor(1) as thread:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        scores = thread.submit(score, pool, "ok")
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        assert [s.failure for s in scores.result(timeout=60)] == [None]
        assert pool.pids != [pid]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("raise", ["ZeroDivisionError: the user's own bug", "in by_command", "'raise'"]),
        ("nan", ["by_command returned nan; expected a finite number"]),
        ("text", ["by_command returned '1.0' (str); expected a number"]),
    ],
)
def test_function_that_raises_stops_the_run_and_names_the_sample(
    user_pool: RewardPool, response: str, expected: list[str]
) -> None:
    with pytest.raises(RewardError) as caught:
        score(user_pool, "ok", response, "ok")
    for text in [*expected, f"{MODULE}:by_command", "sample 1", "3 + 4 ="]:
        assert text in str(caught.value)
    assert score(user_pool, "ok")[0].verifier == 1.0


def test_calls_at_once_share_the_workers(user_pool: RewardPool) -> None:
    async def both() -> list[list[Score]]:
        calls = [score_all(user_pool, [make_item("answer", answer=a, sample=i) for i in range(20)]) for a in "123"]
        return list(await asyncio.gather(*calls))

    assert [{s.verifier for s in scores} for scores in asyncio.run(both())] == [{1.0}, {2.0}, {3.0}]


def test_timeout_ends_what_the_function_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with make_pool(USER, timeout_s=2.0) as pool:
        assert score(pool, f"child {note}")[0].failure == "timeout"
        wait_until(lambda: not is_running(int(note.read_text())))


def test_close_leaves_no_process_also_in_the_middle_of_a_hang() -> None:
    pool = make_pool(USER, workers=2, timeout_s=60.0)
    pids = pool.pids
    assert all(is_running(pid) for pid in pids)

    async def close_while_scoring() -> None:
        asking = asyncio.create_task(score_all(pool, [make_item("sleep 600")] * 3))
        await asyncio.sleep(0.5)
        pool.close()
        with pytest.raises((RewardError, asyncio.CancelledError)):
            await asking

    start = time.monotonic()
    asyncio.run(close_while_scoring())
    assert time.monotonic() - start < 5.0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    pool.close()
    with pytest.raises(RewardError, match="closed"):
        score(pool, "ok")


def test_workers_die_with_a_parent_that_is_killed() -> None:
    """The worker hangs with the interpreter's lock held; its child is in the group too."""
    program = (
        "import asyncio, sys\n"
        "from tests.rewards.scoring import score_all\n"
        "from tests.rewards.test_reward_pool import USER, make_item, make_pool\n"
        "pool = make_pool(USER, timeout_s=600.0, workers=2)\n"
        "print(*pool.pids, flush=True)\n"
        "asyncio.run(score_all(pool, [make_item('hold_lock'), make_item('sleep 600')]))\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.5)
        assert all(is_running(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        (f"{MODULE}:by_comand", "it has by_command, one_argument, coroutine"),
        (f"{MODULE}:NOT_A_FUNCTION", "found 3"),
        (f"{MODULE}:one_argument", r"its signature is \(prompt"),
        (f"{MODULE}:coroutine", "coroutine"),
    ],
)
def test_bad_function_path_is_found_before_anything_starts(path: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_reward(RewardConfig(verifier=FunctionReward(kind="function", path=path)))


def test_module_that_fails_to_import_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_reward.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(
        ConfigError, match=r"(?s)importing broken_reward failed.*No module named 'surely_not_installed'"
    ):
        check_reward(RewardConfig(verifier=FunctionReward(kind="function", path="broken_reward:f")))


def test_function_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_in_cwd.py").write_text("def f(prompt, response):\n    return len(response)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with make_pool(FunctionReward(kind="function", path="reward_in_cwd:f")) as pool:
        assert score(pool, "four")[0].reward == 4.0


def test_worker_that_cannot_start_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports in the parent, dies in the worker."""
    (tmp_path / "dies_in_worker.py").write_text(
        "import os, sys\nif 'pytest' not in sys.modules:\n    os._exit(9)\ndef f(prompt, response):\n    return 0.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(RewardError, match="died while starting, exit code 9"):
        make_pool(FunctionReward(kind="function", path="dies_in_worker:f"), workers=2)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_overlong_penalty_is_added_to_the_verifiers_score() -> None:
    config = RewardConfig(
        verifier=Gsm8kReward(kind="gsm8k"), overlong=OverlongConfig(cache_tokens=20, factor=0.5), workers=1
    )
    with RewardPool(config, DATA, max_response_tokens=100, seed=0) as pool:
        items = [make_item("7", tokens=80), make_item("7", tokens=90), make_item("8", tokens=100)]
        scores = asyncio.run(score_all(pool, items))
    assert [(s.reward, s.verifier, s.overlong) for s in scores] == [
        (1.0, 1.0, 0.0),
        (0.75, 1.0, -0.25),
        (-0.5, 0.0, -0.5),
    ]


def test_math_verify_in_a_worker_scores_garbage_zero_and_bounds_runaway_arithmetic() -> None:
    with make_pool(MathVerifyReward(kind="math_verify"), timeout_s=8.0) as pool:
        scores = score(pool, "\\boxed{7}", "\\boxed{\\frac{}{", "\\boxed{9^{9^{9^{9^9}}}}", "the answer is $7$")
    assert [s.verifier for s in scores] == [1.0, 0.0, 0.0, 1.0]


def test_unreadable_ground_truth_is_an_error() -> None:
    with (
        make_pool(Gsm8kReward(kind="gsm8k")) as pool,
        pytest.raises(RewardError, match="ground truth 'seven' has no number"),
    ):
        asyncio.run(score_all(pool, [make_item("7", answer="seven")]))


def test_reasoning_gym_task_scores_its_own_entries() -> None:
    import reasoning_gym

    entries = reasoning_gym.create_dataset("chain_sum", size=4, seed=0, min_terms=2, max_terms=2)
    prompt = Prompt(index=0, text="", token_ids=(1,), answer=entries[0]["answer"], metadata={"entry": entries[0]})
    right, wrong = entries[0]["answer"], str(int(entries[0]["answer"]) + 1)

    def items(*responses: str) -> Sequence[RewardItem]:
        return [
            RewardItem(prompt=prompt, response=r, response_tokens=1, prompt_index=0, sample_index=i)
            for i, r in enumerate(responses)
        ]

    with make_pool(ReasoningGymReward(kind="reasoning_gym")) as pool:
        scores = asyncio.run(score_all(pool, items(f" {right}\n", wrong, "")))
        assert [s.verifier for s in scores] == [1.0, 0.0, 0.0]
    pattern = r"<answer>(.*?)</answer>"
    with make_pool(ReasoningGymReward(kind="reasoning_gym", answer_pattern=pattern)) as pool:
        texts = (
            f"<answer>{wrong}</answer> <answer> {right} </answer>",
            f"<answer>{right}</answer><answer>{wrong}</answer>",
            right,
        )
        scores = asyncio.run(score_all(pool, items(*texts)))
        assert [s.verifier for s in scores] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("pattern", "expected"), [("(", "not a regular expression"), ("answer", "has no group")])
def test_bad_answer_pattern_is_a_config_error(pattern: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_reward(RewardConfig(verifier=ReasoningGymReward(kind="reasoning_gym", answer_pattern=pattern)))


def test_random_rewards_start_no_process_and_do_not_depend_on_order() -> None:
    before = len(psutil.Process().children(recursive=True))
    with make_pool(RandomReward(kind="random", distribution="uniform"), seed=5) as pool:
        assert len(psutil.Process().children(recursive=True)) == before
        items = [make_item("x", index=p, sample=s) for p in range(8) for s in range(4)]
        forward = asyncio.run(score_all(pool, items, step=3))
        backward = asyncio.run(score_all(pool, items[::-1], step=3))
        alone = asyncio.run(score_all(pool, [items[13]], step=3))
    assert forward == backward[::-1]
    assert alone[0] == forward[13]
    assert len({s.reward for s in forward}) == 32
