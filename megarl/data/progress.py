"""How far loading is: a log line every ten seconds, and whoever listens is told several times a second."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Listener = Callable[[str, int, int], None]
"""(what, done, total), called from the thread that loads; an exception from it ends the loading."""

logger = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
_LISTEN_EVERY_S = 0.1
T = TypeVar("T")


class Progress:
    """Counts one part of the loading up to `total`."""

    def __init__(self, what: str, total: int, listen: Listener | None = None) -> None:
        self._what, self._total, self._listen = what, total, listen
        self._done = 0
        self._log_due = time.monotonic() + _LOG_EVERY_S
        self._listen_due = 0.0

    def advance(self, count: int = 1) -> None:
        """`count` more of `total` are done."""
        self._done += count
        now = time.monotonic()
        if self._listen is not None and (now >= self._listen_due or self._done >= self._total):
            self._listen(self._what, self._done, self._total)
            self._listen_due = now + _LISTEN_EVERY_S
        if now >= self._log_due:
            logger.info("%d of %d %s", self._done, self._total, self._what)
            self._log_due = now + _LOG_EVERY_S


def report_progress(items: Iterable[T], total: int, *, what: str, listen: Listener | None = None) -> Iterator[T]:
    """Pass items through, counting them."""
    progress = Progress(what, total, listen)
    for item in items:
        yield item
        progress.advance()
