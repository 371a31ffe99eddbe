"""Responses that come while others are still being sampled: decoded and verified at once.

A verdict on a response depends on no other. The scores of a prompt's responses are concluded together, when the last of
them has its verdict: what a failed answer gets, and what one that was cut off keeps, depends on the others.
"""

import asyncio
from collections.abc import Callable, Sequence

from megarl.controller.protocols import Scorer
from megarl.records import Prompt, Rollout, Score, TokenIds
from megarl.rewards.item import RewardItem, Verdict

Decode = Callable[[Sequence[TokenIds]], list[str]]
"""Responses to texts, special tokens left out. Called in a thread."""

_AT_ONCE = 512
"""Responses that are decoded and asked about together, so that the event loop hears of others between."""


class Arrivals:
    """The responses of one round: `size` in a row belong to one prompt."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        size: int,
        first: int,
        step: int,
        decode: Decode,
        scorer: Scorer,
        concluded: Callable[[int, Sequence[RewardItem], Sequence[Score]], None] = lambda *_: None,
    ) -> None:
        """`first` is the first prompt's position in the step. `concluded` is told, on the event loop, of each prompt
        by its number when all of its responses have their scores."""
        self._prompts, self._size, self._first, self._step = prompts, size, first, step
        self._decode, self._scorer, self._concluded = decode, scorer, concluded
        self._come: list[tuple[int, Rollout]] = []
        self._more = asyncio.Event()
        self._items: list[RewardItem | None] = [None] * (size * len(prompts))
        self._verdicts: list[Verdict | None] = [None] * (size * len(prompts))
        self._unverified = [size] * len(prompts)
        self._scored: list[tuple[list[RewardItem], list[Score]]] = [([], []) for _ in prompts]

    def add(self, indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
        """These have come; on the event loop."""
        self._come += zip(indexes, rollouts, strict=True)
        self._more.set()

    async def score(self) -> list[tuple[list[RewardItem], list[Score]]]:
        """The items and scores of every prompt, in order, once all have come. Raises what decoding or scoring raises,
        as soon as it does."""
        try:
            async with asyncio.TaskGroup() as verifying:
                left = len(self._items)
                while left:
                    while not self._come:
                        self._more.clear()
                        await self._more.wait()
                    come, self._come = self._come[:_AT_ONCE], self._come[_AT_ONCE:]
                    left -= len(come)
                    items = await asyncio.to_thread(self._make_items, come)
                    verifying.create_task(self._verify([index for index, _ in come], items))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__
        return self._scored

    def _make_items(self, come: Sequence[tuple[int, Rollout]]) -> list[RewardItem]:
        texts = self._decode([rollout.response for _, rollout in come])
        items = []
        for (index, rollout), text in zip(come, texts, strict=True):
            number, sample = divmod(index, self._size)
            items.append(
                RewardItem(
                    prompt=self._prompts[number],
                    response=text,
                    response_tokens=len(rollout.response),
                    prompt_index=self._first + number,
                    sample_index=sample,
                    truncated=rollout.stop_reason == "length",
                )
            )
        return items

    async def _verify(self, indexes: Sequence[int], items: Sequence[RewardItem]) -> None:
        verdicts = await self._scorer.verify(items, step=self._step)
        for index, item, verdict in zip(indexes, items, verdicts, strict=True):
            self._items[index], self._verdicts[index] = item, verdict
            number = index // self._size
            self._unverified[number] -= 1
            if not self._unverified[number]:
                self._conclude(number)

    def _conclude(self, number: int) -> None:
        """All responses to prompt `number` have their verdicts."""
        mine = slice(number * self._size, (number + 1) * self._size)
        items = [item for item in self._items[mine] if item is not None]
        verdicts = [verdict for verdict in self._verdicts[mine] if verdict is not None]
        self._scored[number] = (items, self._scorer.conclude(items, verdicts))
        self._concluded(number, *self._scored[number])
