"""Mean and interval over runs that differ in their seed alone, step by step."""

import math
from collections.abc import Sequence

import numpy as np

from megarl.ablation.seeds import LEVEL, t_quantile
from megarl.report.figure import Values


def interval(values_RS: Values) -> tuple[Values, Values, Values]:
    """(mean, lower, upper end) per step of [runs, steps]: Student's t over runs, as an ablation's tables have it. NaN
    where a run has no value."""
    runs = len(values_RS)
    mean = values_RS.mean(axis=0)
    if runs < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(runs - 1, LEVEL) * values_RS.std(axis=0, ddof=1) / math.sqrt(runs)
    return mean, mean - half, mean + half


def on_common_steps(series: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    """(steps that all have, [series, those steps])."""
    steps = series[0][0]
    for other, _ in series[1:]:
        steps = np.intersect1d(steps, other)
    picked = [values[np.isin(own, steps)] for own, values in series]
    return steps, np.array(picked).reshape(len(series), len(steps))
