"""Fewer points for a long line, with its smallest and largest values where they were.

The rule, which the page says: a line of more than `at_most` values is cut into at_most / 2 parts of equally many
steps; of each its smallest and its largest value stay, and the line's first and last one. A part without a value
leaves its gap.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megarl.report.figure import Line, Values

MOST_VALUES = 400
"""Of a line among few: as many as pixels of a plot."""
FEWEST_VALUES = 50
_ALL_VALUES = 4_000
"""About, of all lines of a kind in a figure."""


def values_per_line(num_lines: int) -> int:
    """How many values of each of so many lines a figure has at most."""
    return max(FEWEST_VALUES, min(MOST_VALUES, _ALL_VALUES // max(num_lines, 1)))


def kept_indices(y: Values, at_most: int) -> NDArray[np.intp]:
    """Positions that stay, ascending. All, where there are no more than `at_most`."""
    count = len(y)
    if count <= at_most:
        return np.arange(count)
    edges = np.linspace(0, count, max(1, at_most // 2) + 1).astype(int)
    kept = {0, count - 1}
    for start, end in pairwise(edges.tolist()):
        part = y[start:end]
        known = np.flatnonzero(np.isfinite(part))
        if len(known):
            kept |= {int(start + known[part[known].argmin()]), int(start + known[part[known].argmax()])}
        else:
            kept.add(int(start))
    return np.array(sorted(kept), dtype=np.intp)


def thin_line(line: Line, at_most: int) -> Line:
    """The line with fewer values. Its band reaches, at what stays, as far as anywhere up to the neighbours."""
    kept = kept_indices(line.y, at_most)
    if len(kept) == len(line.y):
        return line
    low, high = line.low, line.high
    if low is not None and high is not None:
        low, high = _extreme(low, kept, np.fmin), _extreme(high, kept, np.fmax)
    return replace(line, x=line.x[kept], y=line.y[kept], low=low, high=high)


def _extreme(values: Values, kept: NDArray[np.intp], choose: np.ufunc) -> Values:
    """Of each kept position the extreme from the middle to the one before up to the middle to the one after."""
    middles = (kept[:-1] + kept[1:]) // 2 + 1
    starts = np.concatenate([[0], middles])
    return choose.reduceat(values, starts)
