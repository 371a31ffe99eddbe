"""Mean and interval over runs that differ in their seed alone."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from megarl.report.figure import Values

LEVEL = 0.95


def interval(values_RS: Values) -> tuple[Values, Values, Values]:
    """(mean, lower, upper end) per step of [runs, steps]: Student's t over runs. NaN where a run has no value."""
    runs = len(values_RS)
    mean = values_RS.mean(axis=0)
    if runs < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(runs - 1) * values_RS.std(axis=0, ddof=1) / math.sqrt(runs)
    return mean, mean - half, mean + half


def on_common_steps(series: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    """(steps that all have, [series, those steps])."""
    steps = series[0][0]
    for other, _ in series[1:]:
        steps = np.intersect1d(steps, other)
    picked = [values[np.isin(own, steps)] for own, values in series]
    return steps, np.array(picked).reshape(len(series), len(steps))


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors the two-sided interval of `level` reaches, with `freedom` degrees of freedom."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, freedom: int) -> float:
    """P(|T| <= t): the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(angle) ** 2
    term, total = 1.0, 0.0
    odd = freedom % 2
    for index in range(freedom // 2):
        total += term
        top = 2 * index + 1 + odd
        term *= cosine2 * top / (top + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total
