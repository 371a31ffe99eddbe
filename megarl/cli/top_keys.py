"""Single keys of a terminal, without Enter."""

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any, Self, TextIO


class Keys:
    """Used as a context, in which the terminal shows no typed characters; it is as it was after it. Of a standard
    input that is no terminal no key ever comes."""

    def __init__(self, file: TextIO = sys.stdin) -> None:
        self._file = file
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if self._file.isatty():
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """The keys that came within that time; it ends with the first."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._file], [], [], seconds)
        # Not by the file, which would keep what it has read beyond the first.
        return os.read(self._file.fileno(), 64).decode(errors="replace") if ready else ""
