"""From numbers to places on paper: domains, ticks and their labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Scale:
    """`low` of the domain lies at `start`, `high` at `end`; a logarithmic one has a positive domain."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    kind: Literal["linear", "log"] = "linear"

    def __call__(self, value: float) -> float:
        if self.kind == "log":
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def labels(self) -> list[str]:
        """Of the ticks."""
        if self.kind == "log" and self.low >= 1e-3 and self.high < 1e7:
            return [f"{tick:,.6g}" for tick in self.ticks]
        return [format_tick(tick, self.ticks) for tick in self.ticks]


def linear_scale(low: float, high: float, *, start: float, end: float, count: int, nice: bool = True) -> Scale:
    """About `count` ticks; `nice`: the domain is widened to ticks."""
    step = _nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not nice:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    ticks = tuple(round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1))
    return Scale(low, high, start, end, ticks)


def integer_scale(low: float, high: float, *, start: float, end: float, count: int) -> Scale:
    """Of steps: half a step of room on both sides, ticks at whole ones."""
    step = max(1.0, _nice_step((high - low + 1) / count))
    first = math.ceil(low / step)
    ticks = tuple(index * step for index in range(first, math.floor(high / step) + 1)) or (low,)
    return Scale(low - 0.5, high + 0.5, start, end, ticks)


def log_scale(
    low: float, high: float, *, start: float, end: float, base: int = 10, nice: bool = True, most: int = 6
) -> Scale:
    """Ticks at powers of `base`, at most `most`; `nice`: the domain is widened to powers."""
    below, above = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    if below == above:
        above += 1
    every = math.ceil((above - below + 1) / most)
    ticks = [float(base) ** power for power in range(below, above + 1, every)]
    if nice:
        low, high = float(base) ** below, float(base) ** above
    else:
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) < 2:  # no power to either side
            ticks = list(linear_scale(low, high, start=start, end=end, count=4, nice=False).ticks)
    return Scale(low, high, start, end, tuple(ticks), kind="log")


def value_domain(values: Sequence[float], *, from_zero: bool, min_span: float) -> tuple[float, float]:
    """What a linear value axis must cover at least."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = _widened(low, high, min_span)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one step, or a constant: give the axis an extent
        margin = 0.1 * abs(low) or 1.0
        low, high = (low - margin, high + margin) if low else (0.0, margin)
    return low, high


def _widened(low: float, high: float, span: float) -> tuple[float, float]:
    """At least `span` wide: around the middle, but values of one sign get no axis of both."""
    missing = max(0.0, span - (high - low))
    below = missing / 2
    if low >= 0.0:
        below = min(below, low)
    elif high <= 0.0:
        below = max(below, missing + high)
    return low - below, high + missing - below


def _nice_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def format_tick(value: float, ticks: Sequence[float]) -> str:
    """As short as tells the ticks apart."""
    largest = max(abs(tick) for tick in ticks)
    if value == 0:
        return "0"
    if largest < 1e-3 or largest >= 1e7:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    if len(ticks) > 1 and ticks[0] > 0 and ticks[-1] / ticks[0] > 50:  # a logarithmic axis
        return f"{value:,.0f}" if value >= 1 else f"{value:g}".replace("e-0", "e-")
    gap = min((b - a for a, b in pairwise(ticks)), default=abs(value))
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    while decimals < 6 and abs(round(gap, decimals) - gap) > 1e-6 * gap:
        decimals += 1
    return f"{value:,.{decimals}f}".replace("-", "−")
