"""Results of a long call come in batches, all of them, before its end and before its failure."""

import asyncio
from collections.abc import Callable

import pytest

from megarl.runtime.streams import in_batches

Told = Callable[[int, str], None]


async def collect(work: Callable[[Told], object], *, every_s: float = 0.01) -> list[list[tuple[int, str]]]:
    return [batch async for batch in in_batches(work, every_s=every_s)]  # type: ignore[arg-type]


def test_what_comes_together_is_told_together_and_what_comes_early_is_told_early() -> None:
    first_told = asyncio.Event()

    async def work(told: Told) -> None:
        told(2, "c")
        told(0, "a")
        await asyncio.wait_for(first_told.wait(), 30)
        told(1, "b")

    async def listen() -> list[list[tuple[int, str]]]:
        batches = []
        async for batch in in_batches(work, every_s=0.01):
            batches.append(batch)
            first_told.set()
        return batches

    assert asyncio.run(listen()) == [[(2, "c"), (0, "a")], [(1, "b")]]


def test_what_comes_last_while_a_batch_is_looked_at_is_told() -> None:
    async def work(told: Told) -> None:
        told(0, "a")
        await asyncio.sleep(0.05)
        told(1, "b")

    async def listen() -> list[list[tuple[int, str]]]:
        batches = []
        async for batch in in_batches(work, every_s=0.01):
            batches.append(batch)
            await asyncio.sleep(0.2)
        return batches

    assert asyncio.run(listen()) == [[(0, "a")], [(1, "b")]]


def test_nothing_told_is_no_batch() -> None:
    async def work(told: Told) -> None: ...

    assert asyncio.run(collect(work)) == []


def test_what_came_before_a_failure_is_told_before_it() -> None:
    async def work(told: Told) -> None:
        told(0, "a")
        raise ValueError("the engine died")

    async def listen() -> None:
        batches = in_batches(work, every_s=0.01)
        assert await anext(batches) == [(0, "a")]
        with pytest.raises(ValueError, match="the engine died"):
            await anext(batches)

    asyncio.run(listen())


def test_work_ends_when_nobody_listens() -> None:
    ended = asyncio.Event()

    async def work(told: Told) -> None:
        told(0, "a")
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    async def listen() -> None:
        batches = in_batches(work, every_s=0.01)
        assert await anext(batches) == [(0, "a")]
        await batches.aclose()
        assert ended.is_set()

    asyncio.run(listen())
