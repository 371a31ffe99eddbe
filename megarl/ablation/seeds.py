"""A number of a setting over its seeds: the mean, and by Student's t how far the mean of all seeds may be from it.

Seeds are few, so the interval is as wide as the t distribution makes it: with two seeds 9 times the deviation, with
three 2.5 times. It is right as often as it says where a seed's number is about normal. One seed has no interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LEVEL = 0.95
"""Of all intervals of an ablation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """A mean over seeds."""

    value: float
    half_width: float | None
    """Of the interval; None: one seed, which says nothing of others."""
    n: int
    """Seeds."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does; never without one."""
        return self.half_width is not None and abs(self.value) > self.half_width

    def as_json(self) -> dict[str, Any]:
        width = self.half_width
        low, high = (None, None) if width is None else (self.value - width, self.value + width)
        return {"value": self.value, "half_width": width, "low": low, "high": high, "n": self.n}


def mean_over_seeds(values: Sequence[float], *, level: float = LEVEL) -> SeedMean:
    """The mean of one number per seed, with t(n - 1) s / sqrt(n) to either side. ValueError without a number, or where
    one is not finite."""
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"mean over seeds: expected finite numbers, found {list(values)}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return SeedMean(value=mean, half_width=None, n=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return SeedMean(value=mean, half_width=t_quantile(n - 1, level) * deviation / math.sqrt(n), n=n)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = LEVEL
) -> SeedMean | None:
    """The mean of first less second over the seeds that both have, with its interval; None: they share none.

    Runs with one seed see the same prompts in the same order, and begin with the same weights: what a seed does to both
    cancels, as it does not in the difference of two means.
    """
    shared = sorted(first.keys() & second.keys())
    return mean_over_seeds([first[seed] - second[seed] for seed in shared], level=level) if shared else None


@lru_cache(maxsize=256)
def t_quantile(freedom: int, level: float) -> float:
    """t with P(|T| <= t) = level, of `freedom` degrees; by bisection, to the last bits. ValueError out of range."""
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(
            f"Student's t: expected degrees of freedom from 1 and a level in (0, 1), found {freedom}, {level}"
        )
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= t) with t = sqrt(freedom) tan(angle): a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for degree in range(3 if is_odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (degree - 1) / degree
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
