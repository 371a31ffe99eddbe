"""Metrics that merge.

Every value here is a commutative monoid: `a + b` is the metric of both sources together, and the order of merging is
irrelevant up to rounding. A mean carries its total and its count, so a mean of means cannot happen; `.value` is taken
once, at the end, by whoever logs. All types are frozen, picklable and free of tensors.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self


class Metric(Protocol):
    """A value that merges with others of its own type."""

    @property
    def value(self) -> float:
        """The number to log; NaN when nothing was counted."""
        ...

    def __add__(self, other: Self, /) -> Self: ...


Metrics = dict[str, Metric]


@dataclass(frozen=True, slots=True)
class Sum:
    """A total, e.g. tokens or seconds."""

    value: float = 0.0

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.value + other.value) if _same_type(self, other) else NotImplemented


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean as its sum and count: of tokens, sequences or whatever `count` counts; weights are legal counts."""

    total: float = 0.0
    count: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> "Mean":
        """The mean of `values`, each counted once."""
        numbers = list(values)
        return cls(math.fsum(numbers), float(len(numbers)))

    @property
    def value(self) -> float:
        """total / count; NaN when count is 0."""
        return self.total / self.count if self.count else math.nan

    def __add__(self, other: "Mean") -> "Mean":
        if not _same_type(self, other):
            return NotImplemented
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, slots=True)
class Std:
    """A population standard deviation as count, mean and sum of squared deviations (Chan, Golub, LeVeque 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of (x - mean)^2."""

    @classmethod
    def of(cls, values: Iterable[float]) -> "Std":
        """The deviation of `values`, each counted once."""
        numbers = list(values)
        if not numbers:
            return cls()
        mean = math.fsum(numbers) / len(numbers)
        return cls(float(len(numbers)), mean, math.fsum((x - mean) ** 2 for x in numbers))

    @property
    def value(self) -> float:
        """sqrt(squares / count); NaN when count is 0."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def __add__(self, other: "Std") -> "Std":
        if not _same_type(self, other):
            return NotImplemented
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Std(count, mean, self.squares + other.squares + delta * delta * self.count * other.count / count)


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen; NaN wins over every number, because a NaN must never be hidden by a merge."""

    value: float

    def __add__(self, other: "Max") -> "Max":
        if not _same_type(self, other):
            return NotImplemented
        return self if math.isnan(self.value) or self.value >= other.value else other


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest value seen; NaN wins over every number, because a NaN must never be hidden by a merge."""

    value: float

    def __add__(self, other: "Min") -> "Min":
        if not _same_type(self, other):
            return NotImplemented
        return self if math.isnan(self.value) or self.value <= other.value else other


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between fixed edges: bin i holds edges[i] <= x < edges[i + 1]; what lies outside is in the outer bins."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) - 1 or len(self.edges) < 2:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) - 1} counts, found {len(self.counts)}")
        if any(low >= high for low, high in zip(self.edges[:-1], self.edges[1:], strict=True)):
            raise ValueError(f"histogram edges must rise strictly, found {self.edges}")

    @classmethod
    def of(cls, values: Iterable[float], *, edges: tuple[float, ...]) -> "Histogram":
        """Counts of `values` between `edges`. NaN raises ValueError: it belongs in no bin."""
        counts = [0.0] * (len(edges) - 1)
        for x in values:
            if math.isnan(x):
                raise ValueError("NaN has no place in a histogram; count it in a metric of its own")
            counts[min(max(bisect_right(edges, x) - 1, 0), len(counts) - 1)] += 1
        return cls(edges, tuple(counts))

    def quantile(self, q: float) -> float:
        """The q-quantile, linear inside its bin; NaN when empty."""
        target, seen = q * sum(self.counts), 0.0
        for low, high, count in zip(self.edges[:-1], self.edges[1:], self.counts, strict=True):
            if count and seen + count >= target:
                return low + (high - low) * (target - seen) / count
            seen += count
        return math.nan

    @property
    def value(self) -> float:
        """The median."""
        return self.quantile(0.5)

    def __add__(self, other: "Histogram") -> "Histogram":
        if not _same_type(self, other):
            return NotImplemented
        if self.edges != other.edges:
            raise ValueError(f"histograms with different edges do not merge: {self.edges} and {other.edges}")
        return Histogram(self.edges, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))


def merge(*parts: Mapping[str, Metric]) -> Metrics:
    """The metrics of all `parts` together; a name that only some of them have is kept.

    Raises TypeError, naming the metric, when two parts give it different types.
    """
    merged: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            if name not in merged:
                merged[name] = metric
                continue
            if type(merged[name]) is not type(metric):
                raise TypeError(
                    f"metric {name!r} is a {type(merged[name]).__name__} in one part and a {type(metric).__name__} in "
                    "another; every source of a name must use one type"
                )
            merged[name] = merged[name] + metric
    return merged


def to_values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The number of each metric, for the sinks."""
    return {name: float(metric.value) for name, metric in metrics.items()}


def _same_type(left: object, right: object) -> bool:
    return type(left) is type(right)
