"""Results of a long call as they come: Ray's streaming generators cost by the item, so they come in batches."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def in_batches(
    work: Callable[[Callable[[int, T], None]], Awaitable[object]], *, every_s: float
) -> AsyncIterator[list[tuple[int, T]]]:
    """What `work` tells its callback, (position, result), in the order told: together what came within `every_s`.

    Ends when `work` does, and raises what it raises, after the last batch; `work` is cancelled when nobody listens on.
    """
    come: list[tuple[int, T]] = []

    async def run() -> None:
        await work(lambda position, result: come.append((position, result)))

    task = asyncio.create_task(run())
    try:
        done: set[asyncio.Task[None]] = set()
        while not done:
            done, _ = await asyncio.wait([task], timeout=every_s)
            if come:
                batch, come[:] = list(come), []
                yield batch
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
