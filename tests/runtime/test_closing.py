"""A clean-up that is cancelled goes on to its end, and the cancellation after it."""

import asyncio
from typing import Any

import pytest

from megarl.runtime.closing import undisturbed


def close(*, cancel_times: int, work: Any) -> tuple[list[str], bool]:
    """What the work did, and whether the cancellation was raised."""
    done: list[str] = []

    async def scenario() -> bool:
        task = asyncio.create_task(undisturbed(work(done)))
        await asyncio.sleep(0)
        for _ in range(cancel_times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    return done, asyncio.run(scenario())


async def slow(done: list[str]) -> None:
    await asyncio.sleep(0.05)
    done.append("end")


@pytest.mark.parametrize("cancel_times", [0, 1, 3])
def test_the_end_comes_however_often_it_is_cancelled(cancel_times: int) -> None:
    assert close(cancel_times=cancel_times, work=slow) == (["end"], cancel_times > 0)


def test_a_failure_of_the_work_is_raised() -> None:
    async def fail(done: list[str]) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        close(cancel_times=1, work=fail)
