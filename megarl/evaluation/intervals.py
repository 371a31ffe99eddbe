"""Bootstrap intervals over problems: how much a benchmark's number would move with other problems of its kind.

What one problem gives is a value already (an expectation over its responses); resampled are problems, with replacement,
so both sources of chance are in the interval: which problems were asked, and what was sampled on each. Percentiles, of
`RESAMPLES` draws from a seeded generator: the same values give the same interval.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_SEED = 20_250_926
_DRAWS_AT_ONCE = 1 << 21


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems, and its interval."""

    value: float
    low: float
    high: float


def estimate(values_PM: Floats, *, level: float = 0.95, resamples: int = RESAMPLES) -> list[Estimate]:
    """Of every column the mean over problems with its interval; all columns see the same resampled problems.

    values_PM: [problems, measures]. ValueError without problems.
    """
    low, high = _percentiles(_resampled_means(values_PM, resamples=resamples, seed=_SEED), level)
    return [Estimate(*map(float, numbers)) for numbers in zip(values_PM.mean(axis=0), low, high, strict=True)]


def estimate_difference(
    first_PM: Floats, second_PM: Floats, *, paired: bool = True, level: float = 0.95, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Of every column the mean of the first model less that of the second, with its interval.

    paired: row p of both is the same problem, asked with the same seeds; what makes it hard or easy for both then
    cancels. Otherwise the rows of each are resampled for themselves, as if the problems were others.
    """
    if not paired:
        draws = _resampled_means(first_PM, resamples=resamples, seed=_SEED) - _resampled_means(
            second_PM, resamples=resamples, seed=_SEED + 1
        )
        means = first_PM.mean(axis=0) - second_PM.mean(axis=0)
        low, high = _percentiles(draws, level)
        return [Estimate(*map(float, numbers)) for numbers in zip(means, low, high, strict=True)]
    if first_PM.shape != second_PM.shape:
        raise ValueError(f"paired values of shapes {first_PM.shape} and {second_PM.shape}, expected the same problems")
    return estimate(first_PM - second_PM, level=level, resamples=resamples)


def _resampled_means(values_PM: Floats, *, resamples: int, seed: int) -> Floats:
    """[resamples, measures]."""
    if values_PM.ndim != 2 or not len(values_PM):
        raise ValueError(f"expected values of shape [problems, measures], found {values_PM.shape}")
    parts = [counts @ values_PM for counts in _counts(len(values_PM), resamples=resamples, seed=seed)]
    return np.concatenate(parts) / len(values_PM)


def _counts(problems: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """[some resamples, problems]: how often each problem was drawn."""
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, _DRAWS_AT_ONCE // problems)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(problems, size=(rows, problems)) + problems * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems).astype(np.float64)


def _percentiles(draws_RM: Floats, level: float) -> tuple[Floats, Floats]:
    tail = 50 * (1 - level)
    low, high = np.percentile(draws_RM, [tail, 100 - tail], axis=0)
    return low, high
