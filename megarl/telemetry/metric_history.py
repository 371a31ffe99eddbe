"""The metrics of a run that goes on, as a screen needs them: the last rows whole, of a few names the whole curve.

Memory and the cost of a look do not grow with the run: a curve keeps at most `_MOST_POINTS`, means of neighbouring
steps where there were more, and of a long file that is opened the early steps are sampled.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from megarl.telemetry.followed_file import FollowedFile, sample_lines

Row = dict[str, float | None]

_MOST_POINTS = 1024
RECENT_ROWS = 20


class MetricHistory:
    """Of one metrics.jsonl."""

    def __init__(self, path: Path, names: Sequence[str], *, at_once_bytes: int = 1 << 20, samples: int = 256) -> None:
        """names: whose curves are kept. at_once_bytes: of the file that are read at most in one look, its end; where it
        has more when it is opened, `samples` rows spread over it besides."""
        self._names, self._samples = tuple(names), samples
        self._file = FollowedFile(path, at_once_bytes=at_once_bytes)
        self._forget()

    def refresh(self) -> bool:
        """Read what is new; whether there was any. OSError where the file may not be read."""
        new = self._file.read_new()
        if new.anew:
            self._forget()
        early = sample_lines(self._file.path, count=self._samples) if new.anew and new.skipped else []
        rows = [row for line in new.lines if (row := _read_row(line)) is not None]
        first = _step_of(rows[0]) if rows else math.inf
        for row in (row for line in early if (row := _read_row(line)) is not None):
            if _step_of(row) < first:
                self._add_point(row)
        for row in rows:
            self._add(row)
        return bool(rows) or new.anew

    @property
    def last(self) -> Row:
        """The row of the last step; empty before the first."""
        return self.recent[-1] if self.recent else {}

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a name by step, without the steps that have none."""
        at = self._names.index(name)
        return [(step, values[at]) for step, values in self._points if not math.isnan(values[at])]

    def _forget(self) -> None:
        self.recent: deque[Row] = deque(maxlen=RECENT_ROWS)
        """The rows of the last steps."""
        self._points: list[tuple[float, tuple[float, ...]]] = []

    def _add(self, row: Row) -> None:
        step = _step_of(row)
        while self.recent and _step_of(self.recent[-1]) >= step:  # the run made it again
            self.recent.pop()
        self.recent.append(row)
        self._add_point(row)

    def _add_point(self, row: Row) -> None:
        step = _step_of(row)
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        values = (row.get(name) for name in self._names)
        self._points.append((step, tuple(math.nan if value is None else float(value) for value in values)))
        if len(self._points) > _MOST_POINTS:
            self._points = _average_pairs(self._points)


def _average_pairs(points: list[tuple[float, tuple[float, ...]]]) -> list[tuple[float, tuple[float, ...]]]:
    """Neighbours as one, at the later step; an odd last one as it is."""
    merged = [
        (later[0], tuple(map(_mean_of_two, earlier[1], later[1])))
        for earlier, later in zip(points[::2], points[1::2], strict=False)
    ]
    return merged + points[len(merged) * 2 :]


def _mean_of_two(one: float, other: float) -> float:
    if math.isnan(one):
        return other
    return one if math.isnan(other) else (one + other) / 2


def _step_of(row: Row) -> int:
    return int(row["step"] or 0)


def _read_row(line: bytes) -> Row | None:
    """None of what is no row: a file that somebody edits is none of this one's business. A number that is not finite is
    none, as in the rows that megarl writes."""
    try:
        row = json.loads(line)
        int(row["step"])
        row = {name: value for name, value in row.items() if value is None or isinstance(value, int | float)}
        numbers: Row = {
            name: None if value is None or not math.isfinite(value) else value for name, value in row.items()
        }
        int(numbers["step"] or 0)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return numbers
