"""A file of lines that somebody else goes on writing, read as it grows: what was read once is not read again.

The file may not exist yet, may be gone for a while, may be replaced by another or cut back and written anew (a run that
goes on cuts its rows): then it is begun anew, and the reader is told so. A last line without its end is left for later.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_REMEMBERED_BYTES = 64
_SAMPLE_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLines:
    """What one reading found."""

    lines: list[bytes]
    """Whole ones, without their ends, in the file's order."""
    anew: bool
    """What was read before is not in the file any more: forget it. True of the first reading."""
    skipped: bool
    """Lines before these were left out, as there was more than is read at once."""


class FollowedFile:
    """One such file."""

    def __init__(self, path: Path, *, at_once_bytes: int) -> None:
        """at_once_bytes: the most a reading takes; of more, it takes the end."""
        self.path, self._at_once = path, at_once_bytes
        self._forget()

    def read_new(self) -> NewLines:
        """The lines since the last call. No lines where there is no file; OSError where it may not be read."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            gone = NewLines(lines=[], anew=self._identity is not None, skipped=False)
            self._forget()
            return gone
        with file:
            return self._read(file)

    def _forget(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._before = b""
        """The last bytes before the offset: they tell whether the file was cut back and has grown past it again."""

    def _read(self, file: BinaryIO) -> NewLines:
        facts = os.fstat(file.fileno())
        anew = (facts.st_dev, facts.st_ino) != self._identity or not self._goes_on(file, facts.st_size)
        if anew:
            self._forget()
            self._identity = facts.st_dev, facts.st_ino
        start = max(self._offset, facts.st_size - self._at_once)
        skipped = start > self._offset
        file.seek(start)
        data = file.read(facts.st_size - start)
        if skipped:  # into the middle of a line
            first = data.find(b"\n") + 1
            start, data = start + first, data[first:]
        whole = data[: data.rfind(b"\n") + 1]
        if whole or skipped:
            self._offset = start + len(whole)
            self._before = whole[-_REMEMBERED_BYTES:]
        return NewLines(lines=whole.splitlines(), anew=anew, skipped=skipped)

    def _goes_on(self, file: BinaryIO, size: int) -> bool:
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before


def sample_lines(path: Path, *, count: int) -> list[bytes]:
    """Up to `count` whole lines spread evenly over the file by bytes, whatever its size, in its order: for a curve of
    which a screen has no room for more. No lines where there is no file."""
    found: dict[int, bytes] = {}
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        size = os.fstat(file.fileno()).st_size
        for number in range(count):
            line = _line_from(file, number * size // count)
            if line is not None:
                found.setdefault(*line)
    return [found[start] for start in sorted(found)]


def _line_from(file: BinaryIO, position: int) -> tuple[int, bytes] | None:
    """(where it starts, the line) of the first line that begins there or later; None where no whole one does."""
    start = max(0, position - 1)  # a line that begins right at the position counts
    file.seek(start)
    data = file.read(_SAMPLE_BYTES)
    first = data.find(b"\n") + 1 if position else 0
    while (end := data.find(b"\n", first)) < 0 or (position and not first):
        more = file.read(_SAMPLE_BYTES)
        if not more:
            return None
        data += more
        first = first or (data.find(b"\n") + 1 if position else 0)
    return start + first, data[first:end]
