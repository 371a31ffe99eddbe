"""The longest time for which an event loop could do nothing else."""

import asyncio
import gc
import time
import weakref

from megarl.telemetry.stalls import StallWatch


def test_a_call_that_blocks_is_seen_and_one_in_a_thread_is_not() -> None:
    async def work() -> list[float]:
        found = []
        async with StallWatch() as stalls:
            await asyncio.sleep(0.05)
            time.sleep(0.4)  # and nothing after it: what lasts until it is asked for counts
            found.append(stalls.collect())
            await asyncio.sleep(0.05)
            time.sleep(0.4)
            await asyncio.sleep(0.05)
            found.append(stalls.collect())
            await asyncio.to_thread(time.sleep, 0.4)
            found.append(stalls.collect())
        return [metrics["perf/loop_stall_max"].value for metrics in found]

    at_the_end, before, threaded = asyncio.run(work())
    assert at_the_end >= 0.35
    assert before >= 0.35
    assert threaded < 0.35


def test_everything_is_collected_when_it_is_told_and_as_before_afterwards() -> None:
    class Node:
        pass

    full = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            full.append(info)

    async def work() -> tuple[int, int]:
        async with StallWatch() as stalls:
            assert gc.get_freeze_count() > 0
            node = Node()
            node.itself = node
            gone = weakref.ref(node)
            del node
            full.clear()
            kept = [[] for _ in range(600_000)]
            by_themselves = len(full)
            stalls.collect_garbage()
            assert kept
            assert gone() is None
            return by_themselves, len(full)

    before = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        assert asyncio.run(work()) == (0, 1)
    finally:
        gc.callbacks.remove(note)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
