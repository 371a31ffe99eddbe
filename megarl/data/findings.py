"""Faults found while a data set is read, told together: how many, and where the first of each kind is."""

from collections.abc import Callable
from dataclasses import dataclass

from megarl.config.base import ConfigError


@dataclass(slots=True)
class _Kind:
    first: int
    detail: str
    count: int


class Findings:
    """Faults by kind. A kind is what to say after the first one's detail; "{count}" and "{total}" are filled in."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, index: int, detail: str, *, count: int = 1) -> None:
        """`count` faults, the first of them problem `index`'s; `detail` is told of the first one of its kind."""
        if kind in self._kinds:
            self._kinds[kind].count += count
        else:
            self._kinds[kind] = _Kind(first=index, detail=detail, count=count)

    def raise_any(self, place: Callable[[int], str], *, total: int) -> None:
        """One ConfigError with every kind, each after the place of its first fault; nothing where there is none."""
        texts = [
            f"{place(kind.first)}: {kind.detail}; {text.format(count=kind.count, total=total)}"
            for text, kind in self._kinds.items()
        ]
        if texts:
            raise ConfigError("\n".join(texts), texts)
