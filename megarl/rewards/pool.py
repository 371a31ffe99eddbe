"""Scores responses: verifiers in processes of their own, random rewards in place.

No answer can hang or kill a run: one over the time limit, or one that kills its process or wants too much memory, is
wrong and says so. A process that something else kills or stops costs no answer: another one is asked. A user function
that raises does stop the run, because no score would be honest.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.config.reward import FunctionReward, RandomReward, RewardConfig
from megarl.records import Prompt, Score
from megarl.rewards.crew import Crew
from megarl.rewards.item import RewardError, RewardItem, Verdict
from megarl.rewards.messages import Failed, Question, Scored
from megarl.rewards.overlong import compute_overlong_penalty
from megarl.rewards.random_draw import draw_random_reward
from megarl.rewards.turns import Turns
from megarl.rewards.verifiers import check_reward, describe_verifier
from megarl.telemetry.state import check_keys

logger = logging.getLogger(__name__)
_EXCERPT_CHARACTERS = 400
_SLOW_SHARE = 0.1
_LARGEST_SCORE = 1.0  # of every verifier but a user's function, which says otherwise with reward.correct_from


class _NoScoreError(RewardError):
    """A user's function returned what is no score."""


class RewardPool:
    """Starts `config.workers` processes and waits until they can score; `close` (or `with`) ends them.

    ConfigError when the verifier's config cannot work, RewardError when a process does not start. `verify` may run more
    than once at a time; a thread per question does the waiting, so no event loop is blocked or remembered.
    """

    def __init__(self, config: RewardConfig, data: DataConfig, *, max_response_tokens: int, seed: int) -> None:
        check_reward(config)
        self._config = config
        self._max_response_tokens = max_response_tokens
        self._seed = seed
        self.wrong = 0.0 if config.wrong is None else config.wrong
        """What a wrong answer gets; `try_out` may learn it."""
        self._crew: Crew | None = None
        if isinstance(config.verifier, RandomReward):
            return
        self._crew = Crew(config, data)
        self._turns = Turns(workers=config.workers, spares=config.spare_workers)
        self._threads = ThreadPoolExecutor(config.workers + config.spare_workers, thread_name_prefix="reward")

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that answer now."""
        return self._crew.pids if self._crew is not None else []

    async def try_out(self, prompts: Sequence[Prompt]) -> None:
        """Call a user's function on these prompts, with an empty response and with the ground truth as the response.

        ConfigError when it returns what is no number, takes too long or dies; RewardError, as later in the run, when it
        raises. What it gives the empty response is what a wrong answer gets, unless reward.wrong says.
        """
        if not isinstance(self._config.verifier, FunctionReward):
            return
        items = [
            RewardItem(prompt=prompt, response=text, response_tokens=0, prompt_index=index, sample_index=sample)
            for index, prompt in enumerate(prompts)
            for sample, text in enumerate(("", prompt.answer))
        ]
        try:
            verdicts = await self._ask_all(items)
        except _NoScoreError as error:
            raise ConfigError(f"reward.verifier.path {self._config.verifier.path!r}, tried at start: {error}") from None
        except RewardError as error:
            raise RewardError(f"{error}\nThis was a trial call at start; no worker runs yet.") from None
        failed = [(item, verdict.failure) for item, verdict in zip(items, verdicts, strict=True) if verdict.failure]
        if failed:
            item, failure = failed[0]
            limits = f"reward.timeout_s = {self._config.timeout_s:g}, reward.memory_gib = {self._config.memory_gib:g}"
            raise ConfigError(
                f"reward.verifier.path {self._config.verifier.path!r}, tried at start on the response "
                f"{_excerpt(item.response)} to {item.place}: {failure}; expected a number within {limits}"
            )
        empty = [verdict.value for verdict in verdicts[::2] if verdict.value is not None]
        if self._config.wrong is None and empty:
            self.wrong = min(empty)
            if self._is_correct(self.wrong):
                logger.warning(
                    "%s gives an empty response %g, which counts as correct (reward.correct_from %g); set "
                    "reward.correct_from to what it gives a right answer",
                    self._config.verifier.path,
                    self.wrong,
                    self._least_correct,
                )

    async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
        """One verdict per item, in order; it depends on no other response. RewardError when the verifier raises, with
        the sample and the traceback."""
        if isinstance(self._config.verifier, RandomReward):
            return [Verdict(self._draw(self._config.verifier, item, step)) for item in items]
        return await self._ask_all(items)

    def conclude(self, items: Sequence[RewardItem], verdicts: Sequence[Verdict]) -> list[Score]:
        """The scores of all responses to some prompts, in order: what a failed or a cut-off one gets depends on the
        others to its prompt."""
        floors = self._floors(items, verdicts)
        return [
            self._make_score(item, verdict, floors[item.prompt_index])
            for item, verdict in zip(items, verdicts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what `try_out` has learned, which a function might answer otherwise the next time."""
        return {"wrong": self.wrong}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; what the configuration says stays. ValueError when it has other keys."""
        check_keys(state, self.state_dict(), what="scorer")
        if self._config.wrong is None:
            self.wrong = float(state["wrong"])

    def close(self) -> None:
        """End all processes, also in the middle of `verify`. Safe to call twice."""
        if self._crew is None:
            return
        self._turns.close()
        self._crew.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _ask_all(self, items: Sequence[RewardItem]) -> list[Verdict]:
        loop = asyncio.get_running_loop()
        try:
            futures = [loop.run_in_executor(self._threads, self._ask, item) for item in items]
        except RuntimeError as error:
            raise RewardError("the reward pool is closed") from error
        try:
            return await asyncio.gather(*futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _ask(self, item: RewardItem) -> Verdict:
        """In a thread of ours: one item to one process, when its turn has come."""
        assert self._crew is not None
        turn = self._turns.take()
        if turn is None:
            raise RewardError("the reward pool was closed while it scored")
        with turn:
            process = self._crew.take()
            try:
                reply = process.score(
                    Question(item.prompt, item.response),
                    timeout_s=self._config.timeout_s,
                    slow_s=_SLOW_SHARE * self._config.timeout_s,
                    on_slow=turn.mark_slow,
                )
            finally:
                self._crew.give_back(process)
        match reply:
            case Scored(value=value):
                return Verdict(value)
            case Failed(kind="no number"):
                raise _NoScoreError(self._describe(item, reply))
            case Failed():
                raise RewardError(self._describe(item, reply))
            case _:
                logger.warning("reward %s on %s; it is wrong", reply, item.place)
                return Verdict(None, reply)

    def _draw(self, verifier: RandomReward, item: RewardItem, step: int) -> float:
        return draw_random_reward(
            verifier, seed=self._seed, step=step, prompt_index=item.prompt_index, sample_index=item.sample_index
        )

    def _floors(self, items: Sequence[RewardItem], verdicts: Sequence[Verdict]) -> dict[int, float]:
        """By prompt: what a wrong answer gets, or less where a response to the same prompt got less."""
        floors = dict.fromkeys((item.prompt_index for item in items), self.wrong)
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict.value is not None:
                floors[item.prompt_index] = min(floors[item.prompt_index], verdict.value)
        return floors

    def _make_score(self, item: RewardItem, verdict: Verdict, floor: float) -> Score:
        """The verifier's number and what the length makes of it; `Score.verifier` keeps the number itself."""
        overlong = 0.0
        if self._config.overlong is not None:
            overlong = compute_overlong_penalty(
                item.response_tokens,
                max_tokens=self._max_response_tokens,
                cache_tokens=self._config.overlong.cache_of(self._max_response_tokens),
                factor=self._config.overlong.factor,
            )
        verifier = floor if verdict.value is None else verdict.value
        kept = floor + self._config.truncated_factor * (verifier - floor) if item.truncated else verifier
        return Score(
            reward=kept + overlong,
            verifier=verifier,
            correct=False if verdict.failure else self._is_correct(verifier),
            overlong=overlong,
            failure=verdict.failure,
        )

    @property
    def _least_correct(self) -> float:
        return _LARGEST_SCORE if self._config.correct_from is None else self._config.correct_from

    def _is_correct(self, verifier: float) -> bool | None:
        match self._config.verifier:
            case RandomReward(distribution="uniform" | "gaussian") if self._config.correct_from is None:
                return None
            case _:
                return verifier >= self._least_correct or math.isclose(verifier, self._least_correct, rel_tol=1e-9)

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
