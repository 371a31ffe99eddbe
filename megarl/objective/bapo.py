"""BAPO's bounds (arXiv 2510.18927): searched per mini-batch until the positive tokens weigh enough.

The positive contribution is the sum over A > 0 of A min(r, hi), the negative one the sum over A < 0 of |A| max(r, lo).
As in the authors' code, `target` is the RATIO of the two; the paper states the SHARE rho_0 of the positive one
instead: share s is ratio s / (1 - s), so share 0.5 is ratio 1. T = response tokens of this rank's share.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import BapoClip
from megarl.objective.exact_sums import exact_sums
from megarl.objective.ratio import log_ratio
from megarl.objective.share import Share

_SAME_BOUND = 1e-9
"""Steps that end this close to the stop end at it: 0.6 + 4 * 0.05 is 0.8."""


_ROUNDING = 1e-5
"""Of the sums, relative: with advantages that add up to 0 over tokens the two are equal before a batch's first update,
and target 1 is then met whichever comes out larger."""


def search_bounds(objective: ObjectiveConfig, config: BapoClip, share: Share) -> tuple[float, float]:
    """(lo, hi), ratios: the same on every rank. Two collectives, for the sums at all candidate bounds at once.

    While positive / negative is below `target`, lo rises by its step to its stop, then hi to its own; the last pair is
    taken if none suffices, and the first one if nothing is negative. A rising lo also raises the negative
    contribution, so once the first pair fails lo always goes to its stop: this is how the authors' code searches.
    """
    lows = candidates(config.low_start, config.low_stop, config.low_step)
    highs = candidates(config.high_start, config.high_stop, config.high_step)
    totals = exact_sums(_Contributions(objective, share, lows, highs), share.reduce)
    negative, positive = totals[: len(lows)], totals[len(lows) :]
    pairs = [(i, 0) for i in range(len(lows))] + [(len(lows) - 1, j) for j in range(1, len(highs))]
    for i, j in pairs:
        if positive[j] >= (1.0 - _ROUNDING) * config.target * negative[i]:
            return lows[i], highs[j]
    return lows[-1], highs[-1]


def candidates(start: float, stop: float, step: float) -> list[float]:
    """start, start + step, ... and stop itself, which the last step does not pass."""
    values = [start]
    while values[-1] < stop:
        following = start + len(values) * step
        values.append(stop if following > stop - _SAME_BOUND else following)
    return values


class _Contributions:
    """The columns to be summed, computed one at a time: T numbers are held, not T per candidate."""

    def __init__(self, objective: ObjectiveConfig, share: Share, lows: Sequence[float], highs: Sequence[float]) -> None:
        self._ratio_T = log_ratio(objective.ratio, share.tokens).double().exp()
        self._advantage_T = share.advantage_T
        self._lows, self._highs = lows, highs

    def __iter__(self) -> Iterator[Tensor]:
        """|A| max(r, lo) where A < 0 for each lo, then A min(r, hi) where A > 0 for each hi."""
        for low in self._lows:
            yield (-self._advantage_T).clamp(min=0.0) * self._ratio_T.clamp(min=low)
        for high in self._highs:
            yield self._advantage_T.clamp(min=0.0) * self._ratio_T.clamp(max=high)
