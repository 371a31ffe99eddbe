"""The longest time for which an event loop could do nothing else."""

import asyncio
import time

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
