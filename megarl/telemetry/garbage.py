"""When Python's garbage collector looks at everything: it stops every thread meanwhile."""

import gc
from types import TracebackType
from typing import Self

_NEVER = 2**31 - 1
"""Collections of the young before one of everything."""


class ManualCollection:
    """A context in which everything is looked at only when it is told to, and never at what was there before.

    Imported libraries are a million objects, a quarter of a second each time, and the responses of a large step are as
    many, which Python would count anew with every quarter that comes.
    """

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        self._thresholds = gc.get_threshold()
        gc.set_threshold(*self._thresholds[:2], _NEVER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    def collect(self) -> None:
        """What only cycles keep alive; for a moment at which little else lives and nobody waits."""
        gc.collect()
