"""Loading beside the event loop: results, errors and progress come through, and cancelling stops it."""

import asyncio
import io
import threading
import time

import pytest

from megarl.cli.loading import load_beside
from megarl.config.base import ConfigError
from megarl.data.progress import Listener, Progress, report_progress
from megarl.telemetry.console import Console


def console() -> Console:
    return Console(steps=1, file=io.StringIO())


def test_the_result_and_the_error_come_through() -> None:
    def refuse(listen: Listener) -> int:
        raise ConfigError("no such column")

    assert asyncio.run(load_beside(lambda listen: 7, console())) == 7
    with pytest.raises(ConfigError, match="no such column"):
        asyncio.run(load_beside(refuse, console()))


def test_the_event_loop_runs_meanwhile_and_each_part_has_a_bar() -> None:
    shown: list[tuple[str, int | None, int]] = []

    class Watched(Console):
        def _show_advance(self, phase) -> None:
            shown.append((phase.name, phase.total, phase.done))

    go_on = threading.Event()

    def load(listen: Listener) -> str:
        for what, total in (("rows read", 30), ("prompts checked", 2)):
            for _ in report_progress(range(total), total, what=what, listen=listen):
                pass
        assert go_on.wait(10)
        return "loaded"

    async def both() -> str:
        task = asyncio.ensure_future(load_beside(load, Watched(steps=1, file=io.StringIO())))
        while ("prompts checked", 2, 2) not in shown:
            await asyncio.sleep(0.01)
        go_on.set()
        return await task

    assert asyncio.run(both()) == "loaded"
    assert ("rows read", 30, 30) in shown
    assert shown == sorted(shown, key=lambda entry: (entry[0] != "rows read", entry[2]))


def test_cancelling_stops_the_thread_at_its_next_report() -> None:
    started, ended = threading.Event(), threading.Event()

    def load(listen: Listener) -> None:
        progress = Progress("rows read", 10**9, listen)
        try:
            while True:
                progress.advance()
                started.set()
                time.sleep(0.01)
        finally:
            ended.set()

    async def cancel() -> None:
        task = asyncio.ensure_future(load_beside(load, console()))
        while not started.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    start_s = time.monotonic()
    asyncio.run(cancel())
    assert time.monotonic() - start_s < 2


def test_a_thread_that_reports_nothing_is_left_alone() -> None:
    release = threading.Event()

    async def cancel() -> None:
        task = asyncio.ensure_future(load_beside(lambda listen: release.wait(30), console()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    start_s = time.monotonic()
    asyncio.run(cancel())
    assert 1.5 < time.monotonic() - start_s < 10
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "load data"]
    assert thread.daemon
    release.set()
    thread.join(10)
