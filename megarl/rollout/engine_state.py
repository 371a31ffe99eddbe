"""What an engine may do now: sample, or change its weights, never both; nothing more once it is broken.

new -> (open) ready -> (updating) updating -> ready ... -> (close) closed; `fail` makes any but a closed one broken.

Beside that, where it shares its GPUs, its memory: awake -> asleep -> blank -> loaded -> awake. It samples only awake; a
blank one has memory for weights and none in it, and becomes loaded by a publication that came whole. One that was
started without weights is unfilled, until a publication that came whole makes it awake.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from megarl.rollout.failures import EngineError

State = Literal["new", "ready", "updating", "broken", "closed"]
Memory = Literal["awake", "asleep", "blank", "loaded", "unfilled"]


class EngineState:
    """The state of one engine, and who waits for it to change. Lives on one event loop."""

    def __init__(self, name: str) -> None:
        """name: the engine, for messages."""
        self.name = name
        self.now: State = "new"
        self.memory: Memory = "awake"
        self.reason = ""
        """Why it is broken."""
        self._running = 0
        self._changed = asyncio.Condition()

    def open(self) -> None:
        """It has started."""
        self.now = "ready"

    def fail(self, reason: str) -> None:
        """It cannot go on; the first reason is kept."""
        if self.now != "closed":
            self.now = "broken"
        self.reason = self.reason or reason

    async def close(self) -> None:
        """It ends; who waits to sample or to change weights is refused."""
        self.now = "closed"
        await self._notify()

    def check_memory(self, verb: str, *allowed: Memory) -> None:
        """RuntimeError unless its memory is as it must be: whoever asked has not woken it, or woke it too early."""
        if self.memory not in allowed:
            raise RuntimeError(f"{self.name} cannot {verb}: its memory is {self.memory}, not {' or '.join(allowed)}")

    def check_ready(self, verb: str) -> None:
        """EngineError unless it is ready."""
        if self.now != "ready":
            reason = f" ({self.reason})" if self.reason else ""
            raise EngineError(f"{self.name} cannot {verb}: it is {self.now}{reason}")

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[None]:
        """Hold off changes of weights, after waiting for one in progress."""
        async with self._changed:
            await self._await_ready("sample")
            self.check_memory("sample", "awake")
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            await self._notify()

    @asynccontextmanager
    async def updating(self, verb: str = "adopt weights") -> AsyncIterator[None]:
        """Hold back sampling; `await_idle` says when what runs has ended. Ready again after it, unless it failed."""
        async with self._changed:
            await self._await_ready(verb)
            self.now = "updating"
        try:
            yield
        finally:
            if self.now == "updating":
                self.now = "ready"
            await self._notify()

    async def await_idle(self) -> None:
        """Return when nothing is sampling."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running == 0)

    async def _await_ready(self, verb: str) -> None:
        """`_changed` is held."""
        await self._changed.wait_for(lambda: self.now != "updating")
        self.check_ready(verb)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
