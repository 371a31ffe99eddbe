"""How many answers are scored at once: `workers`, and more while some take long: hung ones wait side by side."""

import threading
from types import TracebackType
from typing import Self


class Turns:
    """Hands out turns. An answer that is marked slow no longer counts among the `workers`, and makes room for one more:
    hung answers double what runs until `workers + spares` run.

    Waiting ends when `close` is called; `take` then returns None.
    """

    def __init__(self, *, workers: int, spares: int) -> None:
        self._workers, self._most = workers, workers + spares
        self._running = 0
        self._slow = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> "Turn | None":
        """Wait for a turn; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room() > 0)
            if self._closed:
                return None
            self._running += 1
        return Turn(self)

    def close(self) -> None:
        """Give no more turns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def count(self, *, running: int, slow: int) -> None:
        """Change the counts by so much; a turn's own affair."""
        with self._changed:
            self._running += running
            self._slow += slow
            self._changed.notify(self._room())  # waking all who wait, for one answer each, took longer than answers do

    def _room(self) -> int:
        """How many more answers may be scored now."""
        return max(0, min(self._workers + self._slow - self._running, self._most - self._running - self._slow))


class Turn:
    """One answer's; used as a context."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_slow = False

    def mark_slow(self) -> None:
        """The answer takes long: let others go on. Again, as when it is asked for once more: nothing."""
        if self._is_slow:
            return
        self._is_slow = True
        self._turns.count(running=-1, slow=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.count(running=0 if self._is_slow else -1, slow=-1 if self._is_slow else 0)
