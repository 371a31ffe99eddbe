"""Rows that cannot be used: counted to the end of the data, the first ones named."""

from megarl.config.base import ConfigError

_NAMED = 8


class Faults:
    """Collects what is wrong with single rows, so that one run shows them all."""

    def __init__(self) -> None:
        self.count = 0
        self._texts: list[str] = []

    def add(self, place: str, text: str) -> None:
        """A row cannot be used; `place` is its file and row."""
        self.count += 1
        if len(self._texts) < _NAMED:
            self._texts.append(f"{place}: {text}")

    def raise_any(self) -> None:
        """ConfigError when there were any."""
        more = [f"and {self.count - _NAMED} more rows that cannot be used"] if self.count > _NAMED else []
        if self._texts:
            raise ConfigError("\n".join(self._texts + more), self._texts + more)
