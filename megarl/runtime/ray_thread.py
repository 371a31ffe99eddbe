"""Ray's own blocking calls, made in one thread of their own, so that the event loop goes on and signals are heard.

Ray asks the kernel to end its daemons when the thread that started them ends: the thread therefore lives as long as the
process, and a killed process takes the daemons with it.
"""

import asyncio
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_S = 0.1


class RayThread:
    """Runs functions one after the other. A daemon thread: one that never returns does not hold up the end."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        """Nobody waits any more for what was called: a function that waits in turns may end."""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="megarl-ray", daemon=True).start()

    async def call(self, function: Callable[[], T], *, timeout_s: float) -> T:
        """Its result or error. TimeoutError after `timeout_s`; it may then still be running."""
        future: Future[T] = Future()
        self._work.put((function, future))
        deadline = time.monotonic() + timeout_s
        try:
            while not future.done():
                if time.monotonic() > deadline:
                    raise TimeoutError
                await asyncio.sleep(_POLL_S)
                _keep_sigterm()
        except BaseException:
            self.given_up.set()
            raise
        _keep_sigterm()
        return future.result()

    def _run(self) -> None:
        while True:
            function, future = self._work.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


def _keep_sigterm() -> None:
    """Ray's C++ part puts a handler of its own under Python's, one that ends the process past every orderly end."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
