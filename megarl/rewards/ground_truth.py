"""Ground truths before a run: can the verifier read every one of them?

Each distinct text is read once. math-verify reads in scoring processes, under their limits of time and memory: a truth
like 10^{10^{10}} must not hang the start either.
"""

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import assert_never

from megarl.config.reward import (
    FunctionReward,
    Gsm8kReward,
    MathVerifyReward,
    RandomReward,
    ReasoningGymReward,
    RewardConfig,
)
from megarl.records import Failure
from megarl.rewards.item import RewardError
from megarl.rewards.last_number import read_number
from megarl.rewards.messages import Checked, Failed
from megarl.rewards.process import ScoringProcess

_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?", re.ASCII)  # needs no parser
_ANSWERS_PER_PROCESS = 200
_MOST_PROCESSES = 32


def read_answers(config: RewardConfig, answers: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Every ground truth with what is wrong with it, None where the verifier can read it.

    RewardError when scoring processes do not start.
    """
    match config.verifier:
        case Gsm8kReward():
            yield from ((answer, _try_number(answer)) for answer in answers)
        case MathVerifyReward():
            yield from _read_in_processes(config, list(answers))
        case ReasoningGymReward() | FunctionReward() | RandomReward():
            # The task's entry, whatever the function makes of it, nothing: no text of a kind.
            yield from ((answer, None) for answer in answers)
        case _:
            assert_never(config.verifier)


def _try_number(answer: str) -> str | None:
    try:
        read_number(answer)
    except ValueError as error:
        return str(error)
    return None


def _read_in_processes(config: RewardConfig, answers: list[str]) -> Iterator[tuple[str, str | None]]:
    hard = [answer for answer in answers if not _PLAIN.fullmatch(answer.strip())]
    yield from ((answer, None) for answer in answers if _PLAIN.fullmatch(answer.strip()))
    if not hard:
        return
    count = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES, -(-len(hard) // _ANSWERS_PER_PROCESS))
    with _processes(config, count) as idle, ThreadPoolExecutor(count, thread_name_prefix="answers") as threads:

        def read(answer: str) -> str | None:
            process = idle.get()
            try:
                return _problem_of(answer, process.check(answer, timeout_s=config.timeout_s), config)
            finally:
                idle.put(process)

        yield from zip(hard, threads.map(read, hard), strict=True)


@contextmanager
def _processes(config: RewardConfig, count: int) -> Iterator["SimpleQueue[ScoringProcess]"]:
    started: list[ScoringProcess] = []
    idle: SimpleQueue[ScoringProcess] = SimpleQueue()
    try:
        for _ in range(count):
            started.append(ScoringProcess(config, None))
            idle.put(started[-1])
        yield idle
    finally:
        for process in started:
            process.close()


def _problem_of(answer: str, reply: Checked | Failed | Failure, config: RewardConfig) -> str | None:
    match reply:
        case Checked(problem=problem):
            return problem
        case Failed(error=error, trace=trace):
            raise RewardError(f"math-verify failed on the ground truth {answer!r}: {error}\n{trace}")
        case "timeout":
            return f"math-verify takes longer than reward.timeout_s = {config.timeout_s:g} to read {answer!r}"
        case _:
            return f"math-verify crashes on the ground truth {answer!r}, or wants more than reward.memory_gib"
