"""What could not be read or drawn, for the page and the person who asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager


class Problems:
    """By reason: what many figures lack for one reason is one line."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}

    def add(self, what: str, reason: str) -> None:
        self._by_reason.setdefault(reason, []).append(what)

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """What goes wrong in the block becomes a line and does not cost the page; a panic of the drawing library, which
        is no Exception, too."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            lines = str(error).strip().splitlines()
            self.add(what, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)

    def lines(self) -> list[str]:
        return [
            f"{what[0]}{f' and {len(what) - 1} more' if len(what) > 1 else ''}: {reason}"
            for reason, what in self._by_reason.items()
        ]
