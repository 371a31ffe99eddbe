"""Responses that come while others are still being sampled: decoded and scored at once.

A prompt's responses are scored together, when the last of them has come: what a wrong answer gets, and what one that
was cut off keeps, depends on the others (`rewards.pool`).
"""

import asyncio
from collections.abc import Callable, Sequence

from megarl.controller.protocols import Scorer
from megarl.records import Prompt, Rollout, Score, TokenIds
from megarl.rewards.pool import RewardItem

Decode = Callable[[Sequence[TokenIds]], list[str]]
"""Responses to texts, special tokens left out. Called in a thread."""


class Arrivals:
    """The responses of one round: `size` in a row belong to one prompt."""

    def __init__(
        self, prompts: Sequence[Prompt], *, size: int, first: int, step: int, decode: Decode, scorer: Scorer
    ) -> None:
        """`first` is the first prompt's position in the step."""
        self._prompts, self._size, self._first, self._step = prompts, size, first, step
        self._decode, self._scorer = decode, scorer
        self._rollouts: list[Rollout | None] = [None] * (size * len(prompts))
        self._missing = [size] * len(prompts)
        self._complete: asyncio.Queue[int] = asyncio.Queue()
        self._scored: list[tuple[list[RewardItem], list[Score]]] = [([], []) for _ in prompts]

    def add(self, indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
        """These have come; on the event loop."""
        for index, rollout in zip(indexes, rollouts, strict=True):
            self._rollouts[index] = rollout
            self._missing[index // self._size] -= 1
            if not self._missing[index // self._size]:
                self._complete.put_nowait(index // self._size)

    async def score(self) -> list[tuple[list[RewardItem], list[Score]]]:
        """The items and scores of every prompt, in order, once all have come. Raises what decoding or scoring raises,
        as soon as it does."""
        try:
            async with asyncio.TaskGroup() as scoring:
                left = len(self._prompts)
                while left:
                    numbers = [await self._complete.get()]
                    while not self._complete.empty():
                        numbers.append(self._complete.get_nowait())
                    left -= len(numbers)
                    for number, items in zip(numbers, await self._make_items(numbers), strict=True):
                        scoring.create_task(self._score(number, items))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__
        return self._scored

    async def _make_items(self, numbers: Sequence[int]) -> list[list[RewardItem]]:
        rollouts = [self._group(number) for number in numbers]
        texts = iter(await asyncio.to_thread(self._decode, [rollout.response for of in rollouts for rollout in of]))
        return [
            reward_items(self._prompts[number], of, [next(texts) for _ in of], position=self._first + number)
            for number, of in zip(numbers, rollouts, strict=True)
        ]

    def _group(self, number: int) -> list[Rollout]:
        return [
            rollout
            for rollout in self._rollouts[number * self._size : (number + 1) * self._size]
            if rollout is not None
        ]

    async def _score(self, number: int, items: list[RewardItem]) -> None:
        self._scored[number] = (items, await self._scorer.score(items, step=self._step))


def reward_items(
    prompt: Prompt, rollouts: Sequence[Rollout], texts: Sequence[str], *, position: int
) -> list[RewardItem]:
    """The answers to one prompt, with it; `position` is the prompt's in the step."""
    return [
        RewardItem(
            prompt=prompt,
            response=text,
            response_tokens=len(rollout.response),
            prompt_index=position,
            sample_index=index,
            truncated=rollout.stop_reason == "length",
        )
        for index, (rollout, text) in enumerate(zip(rollouts, texts, strict=True))
    ]
