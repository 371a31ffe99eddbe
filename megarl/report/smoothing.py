"""Smoother lines and fewer bars. What is missing (None, NaN) is never counted as zero."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from megarl.report.figure import Values


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


def average_columns(steps: Values, values: Values, *, at_most: int) -> tuple[Values, Values, Values]:
    """(steps, where the bar of each begins, values) of at most `at_most` bars: means over neighbouring steps.

    values: [rows, steps]. A bar has the number of its last step and ends half a step after it; it begins where the one
    before ends, where that is its neighbour.
    """
    size = math.ceil(len(steps) / at_most)
    firsts = np.arange(0, len(steps), max(size, 1))
    lasts = np.append(firsts[1:], len(steps)) - 1
    if size <= 1:
        return steps, steps - 0.5, values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bar without any value is NaN
        groups = zip(firsts, lasts, strict=True)
        means = [np.nanmean(values[:, first : last + 1], axis=1) for first, last in groups]
    return steps[lasts], steps[firsts] - 0.5, np.array(means).T
