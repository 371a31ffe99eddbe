"""Ctrl-C, SIGTERM and SIGUSR1, at every moment of a run.

SIGUSR1, and SIGTERM where the run saves itself, first ask it to finish its step, save and stop; that has a limit.
Ctrl-C, and whatever comes where that is not possible or was asked before, stops at once: it cancels the work, so that
its `finally` blocks end every worker. A second one says what is being waited for, a third ends everything at once.
Cancelling needs the event loop: where the loop is held up by a call that does not return, KeyboardInterrupt is raised
out of it. The end itself has a limit, after which all is killed too.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from megarl.controller.stopping import StopRequest

_HELD_UP_S = 3.0
CLOSE_LIMIT_S = 180.0
"""Longer than the limits of all that is closed, one after the other."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupts:
    """The signals of one run. Used as `with interrupts.heard(): asyncio.run(interrupts.cancellable(work))`."""

    def __init__(self, *, kill: Callable[[str], None], stop: StopRequest, stop_within_s: float) -> None:
        """kill: ends every process of the run at once and does not return; it is told why. stop: whom the run's loop
        asks after each step. stop_within_s: checkpoint.stop_within_s."""
        self._kill = kill
        self._stop, self._stop_within_s = stop, stop_within_s
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Future[None] | None = None
        self._reached = threading.Event()
        self._raise_now = False
        self._over = threading.Event()

    @property
    def any_heard(self) -> bool:
        """Whether a signal came, to stop at once or after a step."""
        return self._count > 0 or self._stop.reason is not None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While the block runs, signals are handled here."""
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield
        finally:
            self._over.set()
            for number, handler in before.items():
                signal.signal(number, handler)

    async def cancellable(self, work: Awaitable[None]) -> None:
        """Await the work; CancelledError when a signal came."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(work)
        if self._count:
            self._task.cancel()
        await self._task

    def _hear(self, number: int, _: object) -> None:
        if self._raise_now:
            self._raise_now = False
            if not self._reached.is_set():
                raise KeyboardInterrupt
            return
        if self._count == 0 and self._asked_to_stop(number):
            return
        self._count += 1
        if self._count == 1:
            threading.Thread(target=self._see_to_it, args=(number,), name="megarl-stop", daemon=True).start()
            if self._loop is None or self._loop.is_closed():
                raise KeyboardInterrupt
            self._loop.call_soon_threadsafe(self._cancel)
        elif self._count == 2:
            say_at_once(
                f"\nstopping: workers are being ended, for {CLOSE_LIMIT_S:g} s at most; once more ends them at once\n"
            )
        else:
            self._kill("stopped by a third signal")

    def _asked_to_stop(self, number: int) -> bool:
        """Whether the run will stop by itself, saved: it was asked to now, for the first time."""
        if number == signal.SIGINT or self._stop.reason is not None:
            return False
        name = signal.Signals(number).name
        if not self._stop.ask(name, to_save=number == signal.SIGUSR1):
            return False
        say_at_once(
            f"\n{name}: the run finishes its step, saves and stops, within {self._stop_within_s:g} s "
            "(checkpoint.stop_within_s); once more stops it at once\n"
        )
        threading.Thread(target=self._limit_stop, args=(number,), name="megarl-stop-limit", daemon=True).start()
        return True

    def _limit_stop(self, number: int) -> None:
        """In a thread of its own: what was asked for has an end."""
        if not self._over.wait(self._stop_within_s) and self._count == 0:
            self._stop.give_up()
            say_at_once(f"\nnot done within {self._stop_within_s:g} s (checkpoint.stop_within_s): stopping at once\n")
            os.kill(os.getpid(), number)

    def _cancel(self) -> None:
        self._reached.set()
        if self._task is not None:
            self._task.cancel()

    def _see_to_it(self, number: int) -> None:
        """In a thread of its own: the first signal has an effect, and the end comes."""
        if not self._reached.wait(_HELD_UP_S) and not self._over.is_set():
            self._raise_now = True
            os.kill(os.getpid(), number)
        if not self._over.wait(CLOSE_LIMIT_S):
            self._kill(f"stopped by a signal; what ends the workers was not done within {CLOSE_LIMIT_S:g} s")


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """While the block runs, each of the signals raises KeyboardInterrupt: nothing is left that must end in order."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_at_once(text: str) -> None:
    """Past every lock: a signal may come in the middle of a print. Without effect where nobody reads stderr: a Ctrl-C
    ends the `tee` that did, too."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), text.encode())
