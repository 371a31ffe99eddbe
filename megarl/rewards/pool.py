"""Scores responses: verifiers in processes of their own, random rewards in place.

No answer can hang or kill a run: one over the time limit or one that kills its process scores 0 and says so. A user
function that raises does stop the run, because no score would be honest.
"""

import asyncio
import logging
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from megarl.config.data import DataConfig, RandomReward, RewardConfig
from megarl.records import Score
from megarl.rewards.item import RewardError, RewardItem
from megarl.rewards.overlong import compute_overlong_penalty
from megarl.rewards.process import Failure, ScoringProcess
from megarl.rewards.random_draw import draw_random_reward
from megarl.rewards.verifiers import check_reward, describe_verifier
from megarl.rewards.worker import Failed, Scored

logger = logging.getLogger(__name__)
_EXCERPT_CHARACTERS = 400


class RewardPool:
    """Starts `config.workers` processes and waits until they can score; `close` (or `with`) ends them.

    ConfigError when the verifier's config cannot work, RewardError when a process does not start. `score` may run more
    than once at a time; a thread per process does the waiting, so no event loop is blocked or remembered.
    """

    def __init__(self, config: RewardConfig, data: DataConfig, *, max_response_tokens: int, seed: int) -> None:
        check_reward(config)
        self._config = config
        self._max_response_tokens = max_response_tokens
        self._seed = seed
        self._processes: list[ScoringProcess] = []
        self._idle: queue.SimpleQueue[ScoringProcess] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        if isinstance(config.verifier, RandomReward):
            return
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="reward")
        try:
            for _ in range(config.workers):
                self._processes.append(ScoringProcess(config.verifier, data))
            for process in self._processes:
                process.wait_ready()
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that answer now."""
        return [process.pid for process in self._processes]

    async def score(self, items: Sequence[RewardItem], *, step: int) -> list[Score]:
        """One Score per item, in order. RewardError when the verifier raises, with the sample and the traceback."""
        if isinstance(self._config.verifier, RandomReward):
            return [self._make_score(item, self._draw(self._config.verifier, item, step), None) for item in items]
        if self._threads is None:
            raise RewardError("the reward pool is closed")
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._threads, self._ask, item) for item in items]
        try:
            return await asyncio.gather(*futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def close(self) -> None:
        """End all processes, also in the middle of `score`. Safe to call twice."""
        for process in self._processes:
            process.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        for process in self._processes:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, item: RewardItem) -> Score:
        """In a thread of ours: one item to one idle process. There are as many threads as processes."""
        process = self._idle.get()
        try:
            reply = process.score(item.prompt, item.response, timeout_s=self._config.timeout_s)
        finally:
            self._idle.put(process)
        match reply:
            case Scored(value=value):
                return self._make_score(item, value, None)
            case Failed():
                raise RewardError(self._describe(item, reply))
            case _:
                logger.warning("reward %s on %s; it scores 0", reply, item.place)
                return self._make_score(item, 0.0, reply)

    def _draw(self, verifier: RandomReward, item: RewardItem, step: int) -> float:
        return draw_random_reward(
            verifier, seed=self._seed, step=step, prompt_index=item.prompt_index, sample_index=item.sample_index
        )

    def _make_score(self, item: RewardItem, verifier: float, failure: Failure | None) -> Score:
        """The verifier's number and what the length makes of it; `Score.verifier` keeps the number itself."""
        overlong = 0.0
        if self._config.overlong is not None:
            overlong = compute_overlong_penalty(
                item.response_tokens,
                max_tokens=self._max_response_tokens,
                cache_tokens=self._config.overlong.cache_of(self._max_response_tokens),
                factor=self._config.overlong.factor,
            )
        kept = verifier * self._config.truncated_factor if item.truncated else verifier
        return Score(reward=kept + overlong, verifier=verifier, overlong=overlong, failure=failure)

    def _describe(self, item: RewardItem, failed: Failed) -> str:
        return (
            f"{describe_verifier(self._config.verifier)} failed on {item.place}: {failed.error}\n"
            f"prompt: {_excerpt(item.prompt.text)}\n"
            f"ground truth: {_excerpt(item.prompt.answer)}\n"
            f"response: {_excerpt(item.response)}\n{failed.trace}"
        )


def _excerpt(text: str) -> str:
    if len(text) <= _EXCERPT_CHARACTERS:
        return repr(text)
    half = _EXCERPT_CHARACTERS // 2
    return f"{text[:half]!r} ... {text[-half:]!r} ({len(text)} characters)"
