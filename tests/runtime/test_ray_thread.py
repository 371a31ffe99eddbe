"""Blocking calls in a thread of their own: results, errors, limits, and the signal handler that stays."""

import asyncio
import signal
import threading
import time

import pytest

from megarl.runtime.closing import undisturbed
from megarl.runtime.ray_thread import RayThread


def test_results_and_errors_come_in_order_from_one_thread() -> None:
    async def scenario() -> None:
        thread = RayThread()
        first = await thread.call(threading.get_ident, timeout_s=5)
        assert first != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 / 0, timeout_s=5)
        assert await thread.call(threading.get_ident, timeout_s=5) == first

    asyncio.run(scenario())


def test_what_does_not_return_is_given_up_and_may_know() -> None:
    async def scenario() -> None:
        thread, ended = RayThread(), threading.Event()

        def wait_in_turns() -> None:
            while not thread.given_up.wait(0.05):
                pass
            ended.set()

        with pytest.raises(TimeoutError):
            await thread.call(wait_in_turns, timeout_s=0.3)
        assert ended.wait(2)

    asyncio.run(scenario())


def test_the_handler_of_sigterm_stays() -> None:
    """A library that puts its own below Python's, as Ray's C++ part does, does not keep it."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))

    def put_below() -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal(int(signal.SIGTERM), ctypes.c_void_p(1))  # SIG_IGN, without Python's knowledge
        time.sleep(0.3)

    async def scenario() -> None:
        await RayThread().call(put_below, timeout_s=5)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)

    try:
        asyncio.run(scenario())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_closing_is_not_cut_short_and_the_cancellation_comes_after_it() -> None:
    closed = []

    async def close() -> None:
        await asyncio.sleep(0.3)
        closed.append(1)

    async def scenario() -> None:
        task = asyncio.ensure_future(undisturbed(close()))
        for _ in range(3):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert closed == [1]


def test_closing_that_fails_says_so() -> None:
    async def close() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        asyncio.run(undisturbed(close()))
