"""Fewer and smoother points for a chart. None is a value that is missing: it is never counted as zero."""

import math
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, float | None]]


def moving_window(points: int) -> int:
    """Points the moving mean covers: a twentieth of them, at least 3; 1 (no smoothing) below 6 points."""
    return 1 if points < 6 else max(3, round(points / 20))


def moving_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean of those of the last `window` values that exist, None where none does; shorter at the start."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        known = [value for value in values[max(0, end - window) : end] if value is not None]
        means.append(math.fsum(known) / len(known) if known else None)
    return means


def average_neighbours(rows: Rows, *, at_most: int) -> Rows:
    """At most `at_most` rows: means over neighbouring steps, maxima of what is a maximum; "step" is the last one's."""
    size = math.ceil(len(rows) / at_most)
    if size <= 1:
        return rows
    names = list(dict.fromkeys(name for row in rows for name in row))
    averaged = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        row: dict[str, float | None] = {}
        for name in names:
            known = [value for r in part if (value := r.get(name)) is not None]
            is_maximum = name.endswith(("/max", "_max"))
            row[name] = (max(known) if is_maximum else math.fsum(known) / len(known)) if known else None
        averaged.append(row | {"step": part[-1]["step"]})
    return averaged
