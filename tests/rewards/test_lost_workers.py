"""Scoring processes that something else kills or stops in the middle of answers, and answers that do it themselves."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megarl.config.reward import RewardConfig
from megarl.records import Score
from megarl.rewards import process
from megarl.rewards.pool import RewardPool
from tests.rewards.scoring import score_all
from tests.rewards.test_reward_pool import DATA, USER, make_item, make_pool, score, wait_until

ANSWERS = 12


def score_while(pool: RewardPool, *responses: str, meanwhile: Callable[[RewardPool], None]) -> list[Score]:
    """Scores of the responses; `meanwhile` is called in a thread of its own when they are being scored."""

    async def both() -> list[Score]:
        asking = asyncio.create_task(score_all(pool, [make_item(text, sample=i) for i, text in enumerate(responses)]))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(meanwhile, pool)
        return await asking

    return asyncio.run(both())


def send(number: signal.Signals, *, times: int, every_s: float) -> Callable[[RewardPool], None]:
    """To every process of the pool, so many times."""

    def act(pool: RewardPool) -> None:
        for _ in range(times):
            for pid in pool.pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue  # it is being replaced
            time.sleep(every_s)

    return act


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_are_killed_in_the_middle_of_a_batch_cost_no_answer(number: signal.Signals) -> None:
    responses = [f"value 0.3 {index}" for index in range(ANSWERS)]
    with make_pool(USER, workers=2, timeout_s=20.0) as pool:
        before = set(pool.pids)
        scores = score_while(pool, *responses, meanwhile=send(number, times=2, every_s=3.0))
        assert not before & set(pool.pids)
    assert [each.verifier for each in scores] == [float(index) for index in range(ANSWERS)]
    assert [each.failure for each in scores] == [None] * ANSWERS


def test_workers_that_are_stopped_in_the_middle_of_a_batch_cost_no_answer() -> None:
    """They are found when the time of an answer is over, and not waited for longer."""
    config = RewardConfig(verifier=USER, timeout_s=4.0, workers=2, spare_workers=0)
    responses = [f"value 1.0 {index}" for index in range(4)]
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        before = set(pool.pids)
        scores = score_while(pool, *responses, meanwhile=send(signal.SIGSTOP, times=1, every_s=0.0))
        assert not before & set(pool.pids)
    assert [each.verifier for each in scores] == [0.0, 1.0, 2.0, 3.0]
    assert [each.failure for each in scores] == [None] * 4


def test_a_worker_that_goes_on_in_time_answers_itself() -> None:
    def pause(pool: RewardPool) -> None:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(pid, signal.SIGCONT)

    with make_pool(USER, workers=1, timeout_s=20.0) as pool:
        before = pool.pids
        (only,) = score_while(pool, "value 1.0 7", meanwhile=pause)
        assert (only.verifier, only.failure, pool.pids) == (7.0, None, before)


@pytest.mark.parametrize(
    ("number", "failure", "asked"),
    [(signal.SIGKILL, "crash", 3), (signal.SIGSTOP, "timeout", 3), (signal.SIGSEGV, "crash", 1)],
)
def test_an_answer_that_ends_or_stops_its_own_process_is_not_asked_for_ever(
    number: signal.Signals, failure: str, asked: int, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with make_pool(USER, workers=1, timeout_s=2.0) as pool:
        bad, good = score(pool, f"signal {note} {int(number)}", "value 0 3")
    assert (bad.verifier, bad.failure, bad.correct) == (0.0, failure, False)
    assert (good.verifier, good.failure) == (3.0, None)
    assert note.read_text().splitlines() == ["asked"] * asked


def test_an_answer_that_exits_is_asked_once(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with make_pool(USER, workers=1) as pool:
        assert [each.failure for each in score(pool, f"noted_exit {note}", "ok")] == ["crash", None]
    assert note.read_text() == "asked\n"


def test_one_that_is_stopped_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_pool(USER, workers=1) as pool:
        monkeypatch.setattr(process, "_START_TIMEOUT_S", 1.0)
        spawn, stopped = process.ScoringProcess._spawn, list[int]()

        def stop_the_first(worker: process.ScoringProcess) -> None:
            spawn(worker)
            if stopped:
                monkeypatch.setattr(process, "_START_TIMEOUT_S", 60.0)
                return
            os.kill(worker.pid, signal.SIGSTOP)
            stopped.append(worker.pid)

        monkeypatch.setattr(process.ScoringProcess, "_spawn", stop_the_first)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process.is_stopped(pid))
        assert [each.failure for each in score(pool, "ok")] == [None]
        assert len(stopped) == 1
        assert pool.pids != stopped
