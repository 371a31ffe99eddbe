"""For how long an event loop could do nothing else: while it stands, no answer is taken and no work is handed out."""

import asyncio
import time
from types import TracebackType
from typing import Self

from megarl.telemetry.metrics import Metrics, declared

_EVERY_S = 0.01
"""How often the loop is asked. A stall is seen to within this."""


class StallWatch:
    """Used as a context on the loop that it watches."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._asked_s = 0.0

    def collect(self) -> Metrics:
        """perf/loop_stall_max since the last call, seconds, what lasts now included."""
        longest_s = max(self._longest_s, self._overdue_s())
        self._longest_s, self._asked_s = 0.0, time.perf_counter()
        return declared({"perf/loop_stall_max": longest_s})

    async def __aenter__(self) -> Self:
        self._asked_s = time.perf_counter()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            self._asked_s = time.perf_counter()
            await asyncio.sleep(_EVERY_S)
            self._longest_s = max(self._longest_s, self._overdue_s())

    def _overdue_s(self) -> float:
        return max(0.0, time.perf_counter() - self._asked_s - _EVERY_S)
