"""Responses are decoded and verified while others are sampled, one by one, and scored prompt by prompt."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from megarl.controller.arrivals import Arrivals
from megarl.records import Rollout, Score
from megarl.rewards.item import RewardError, RewardItem, Verdict
from tests.controller.fakes import PROMPTS, Recorder, make_config, run

LONG_S = 30.0


class Stepwise(Recorder):
    """The last three of the four responses come only after the first has its verdict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first_verified = asyncio.Event()

    async def generate(self, requests: Sequence[Any], arrived: Any) -> list[Rollout]:
        self.calls.append("generate")
        rollouts = [self.answer(position, request) for position, request in enumerate(requests)]
        arrived([1], rollouts[1:2])
        await asyncio.wait_for(self.first_verified.wait(), LONG_S)
        assert not self.items, "scored before the prompt's other response has come"
        arrived([2, 0, 3], [rollouts[2], rollouts[0], rollouts[3]])
        return rollouts

    async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
        verdicts = await super().verify(items, step=step)
        self.first_verified.set()
        return verdicts


def test_a_response_is_verified_when_it_has_come() -> None:
    recorder = Stepwise()
    run(make_config(steps=1), recorder)
    (record,) = recorder.records
    assert [(item.prompt_index, item.sample_index) for item in record.items] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [score.verifier for score in record.scores] == [0.0, 1.0, 0.0, 1.0]


def test_a_failing_reward_ends_the_sampling_at_once() -> None:
    class Failing(Stepwise):
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False

        async def generate(self, requests: Sequence[Any], arrived: Any) -> list[Rollout]:
            try:
                return await super().generate(requests, arrived)
            except asyncio.CancelledError:
                self.cancelled = True
                raise

        async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
            raise RewardError("the function failed on prompt 0")

    recorder = Failing()
    with pytest.raises(RewardError, match="failed on prompt 0"):
        run(make_config(steps=1), recorder)
    assert recorder.cancelled


def test_failing_engines_end_the_scoring() -> None:
    class Dying(Recorder):
        async def generate(self, requests: Sequence[Any], arrived: Any) -> list[Rollout]:
            arrived([0, 1], [self.answer(0, requests[0]), self.answer(1, requests[1])])
            await asyncio.sleep(0)
            raise RuntimeError("rollout rank 0 died")

        async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
            await asyncio.sleep(LONG_S)
            return []

    with pytest.raises(RuntimeError, match="rollout rank 0 died"):
        run(make_config(steps=1), Dying())


def test_a_group_is_scored_once_and_whole_in_whatever_order_it_comes() -> None:
    class Scorer:
        def __init__(self) -> None:
            self.concluded: list[list[tuple[int, int]]] = []

        async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
            await asyncio.sleep(0.01 if items[0].prompt_index == 5 else 0)
            return [Verdict(float(item.response)) for item in items]

        def conclude(self, items: Sequence[RewardItem], verdicts: Sequence[Verdict]) -> list[Score]:
            self.concluded.append([(item.prompt_index, item.sample_index) for item in items])
            return [Score(reward=verdict.value or 0.0, verifier=3.0) for verdict in verdicts]

    async def work() -> tuple[Scorer, Any]:
        scorer = Scorer()
        arrivals = Arrivals(
            PROMPTS[:2],
            size=2,
            first=5,
            step=3,
            decode=lambda responses: [str(int(ids[0])) for ids in responses],
            scorer=scorer,
        )
        scoring = asyncio.create_task(arrivals.score())
        for index in (3, 0, 2, 1):
            response = Rollout(
                prompt=(1,), response=(index,), behavior_logp=(0.0,), stop_reason="stop", policy_version=0
            )
            arrivals.add([index], [response])
            await asyncio.sleep(0)
        return scorer, await scoring

    scorer, scored = asyncio.run(work())
    assert sorted(scorer.concluded) == [[(5, 0), (5, 1)], [(6, 0), (6, 1)]]
    assert [[score.reward for score in scores] for _, scores in scored] == [[0.0, 1.0], [2.0, 3.0]]
    assert [[item.response for item in items] for items, _ in scored] == [["0", "1"], ["2", "3"]]
