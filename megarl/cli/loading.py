"""Loading beside the event loop: signals are served while a large data set is read, and its progress is shown."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from megarl.data.progress import Listener
from megarl.telemetry.console import Console, Phase

T = TypeVar("T")
_PATIENCE_S = 2.0


class LoadingStopped(Exception):
    """Raised in the loading thread when nobody waits for it any more."""


async def load_beside(load: Callable[[Listener], T], console: Console) -> T:
    """The result of `load`, run in a thread; what it tells its listener is shown as a progress bar for each part.

    Cancelled, it stops the thread at its next report. One that makes none within two seconds (a hub's download) is
    left alone: it is a daemon and does not keep the process.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()
    ended, stopping = asyncio.Event(), threading.Event()

    with _Display(console) as display:

        def listen(what: str, done: int, total: int) -> None:
            if stopping.is_set():
                raise LoadingStopped
            loop.call_soon_threadsafe(display.show, what, done, total)

        def run() -> None:
            try:
                finish = _setter(result, load(listen))
            except BaseException as error:
                finish = _failure(result, error)
            # Closed: the process ends and nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish)
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=run, name="load data", daemon=True).start()
        try:
            return await result
        finally:
            stopping.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _PATIENCE_S)


def _setter(result: "asyncio.Future[T]", value: T) -> Callable[[], None]:
    return lambda: None if result.done() else result.set_result(value)


def _failure(result: "asyncio.Future[T]", error: BaseException) -> Callable[[], None]:
    return lambda: None if result.done() else result.set_exception(error)


class _Display:
    """One progress bar at a time, for the part that was heard of last. Lives in the event loop's thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = contextlib.ExitStack()
        self._what: str | None = None
        self._phase: Phase | None = None

    def show(self, what: str, done: int, total: int) -> None:
        if what != self._what or self._phase is None:
            self._open.close()
            self._what = what
            self._phase = self._open.enter_context(self._console.phase(what, total))
        self._phase.advance(done - self._phase.done)

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
