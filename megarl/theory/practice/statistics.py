"""One number per run: how often, how closely, how much. What is undefined is NaN, and no run has it.

Runs are what varies independently; updates and tokens of a run do not, so nothing here is an interval.
"""

from dataclasses import dataclass

import numpy as np

from megarl.report.figure import Values
from megarl.report.predicted import correlate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of predictions p and measurements m."""

    n: int
    sign: float
    """Share of pairs with one sign, of those where neither is 0."""
    correlation: float
    slope: float
    """s of the line m = s p through the origin, by least squares."""
    error: float
    """Root of the sum of (m - s p)^2 over that of m^2: 0 is exact, 1 is no better than predicting 0."""

    def named(self) -> dict[str, float]:
        return {
            "n": float(self.n),
            "sign": self.sign,
            "correlation": self.correlation,
            "slope": self.slope,
            "error": self.error,
        }


def agree(predicted: Values, measured: Values) -> Agreement | None:
    """None where no pair is finite."""
    both = np.isfinite(predicted) & np.isfinite(measured)
    p, m = predicted[both], measured[both]
    if not len(p):
        return None
    signs = np.sign(p) * np.sign(m)
    told = signs != 0
    squares, total = float(p @ p), float(m @ m)
    slope = float(p @ m) / squares if squares > 0 else np.nan
    left = m - slope * p
    return Agreement(
        n=len(p),
        sign=float((signs[told] > 0).mean()) if told.any() else np.nan,
        correlation=correlate(p, m),
        slope=slope,
        error=float(np.sqrt(left @ left / total)) if total > 0 and np.isfinite(slope) else np.nan,
    )


def difference_within(changes: Values, chosen: Values, strata: Values) -> float:
    """Mean change of the chosen less that of the others, compared within each stratum: the coefficient of `chosen` in a
    least-squares fit with a level per stratum. NaN where no stratum has both."""
    above = below = 0.0
    for stratum in np.unique(strata):
        inside = strata == stratum
        centred = chosen[inside] - chosen[inside].mean()
        above += float(centred @ changes[inside])
        below += float(centred @ centred)
    return above / below if below > 0 else np.nan


def doubling_group(ordinal: int) -> str:
    """Of the numbers from 1: "1", "2-3", "4-7", "8-15", ..."""
    low = 1 << (ordinal.bit_length() - 1)
    return "1" if low == 1 else f"{low}-{2 * low - 1}"
