"""Curves in one line of text."""

import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.:-=+*#"
"""For a terminal that has no others."""

Points = Sequence[tuple[float, float]]
"""(step, value), by step."""


def sparkline(points: Points, *, width: int, levels: str = LEVELS) -> str:
    """The curve from its lowest value (the first level) to its highest, at most `width` characters.

    Each character is the mean of its share of the steps; one without a finite value is a blank. Fewer points than
    characters take one each. A curve of one value lies in the middle.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    means = [value for _, value in points] if len(points) <= width else _means(points, width)
    shown = [mean for mean in means if math.isfinite(mean)]
    low, high = min(shown), max(shown)
    return "".join(_level(mean, low, high, levels) for mean in means)


def _means(points: Points, width: int) -> list[float]:
    """Of each of `width` equal shares of the steps, NaN of one that has none."""
    first, last = points[0][0], points[-1][0]
    share = (last - first) / width or 1.0
    bins: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        if math.isfinite(value):
            bins[min(width - 1, int((step - first) / share))].append(value)
    return [math.fsum(values) / len(values) if values else math.nan for values in bins]


def _level(value: float, low: float, high: float, levels: str) -> str:
    if not math.isfinite(value):
        return " "
    if high <= low:
        return levels[len(levels) // 2 - 1]
    return levels[min(len(levels) - 1, int((value - low) / (high - low) * len(levels)))]
