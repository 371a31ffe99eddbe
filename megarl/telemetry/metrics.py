"""Metrics that merge.

`a + b` is the metric of both sources together; but for `Last`, the order of merging is irrelevant up to rounding. A
mean carries its total and its count, so a mean of means cannot happen; `.value` is taken once, at the end, by whoever
logs. All types are frozen, picklable and free of tensors.

Which of them a name is says `names.merge_of` alone, and `declared` alone makes metrics: of the values of each name
what is declared there. `Mean` is besides a number of its own, a sum with its count, that others hold and hand in.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self

from megarl.telemetry.names import Merge, merge_of


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

    @classmethod
    def of(cls, values: Iterable[float]) -> "Sum":
        """The total of `values`."""
        return cls(math.fsum(values))

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

    @classmethod
    def of(cls, values: Iterable[float]) -> "Max":
        """The largest of `values`; at least one."""
        return reduce(Max.__add__, map(cls, values))

    def __add__(self, other: "Max") -> "Max":
        if not _same_type(self, other):
            return NotImplemented
        return self if math.isnan(self.value) or self.value >= other.value else other


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest value seen; NaN wins over every number, because a NaN must never be hidden by a merge."""

    value: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Min":
        """The smallest of `values`; at least one."""
        return reduce(Min.__add__, map(cls, values))

    def __add__(self, other: "Min") -> "Min":
        if not _same_type(self, other):
            return NotImplemented
        return self if math.isnan(self.value) or self.value <= other.value else other


@dataclass(frozen=True, slots=True)
class Last:
    """What holds now: of two, the one that is merged later."""

    value: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Last":
        """The last of `values`; at least one."""
        return reduce(Last.__add__, map(cls, values))

    def __add__(self, other: "Last") -> "Last":
        return other if _same_type(self, other) else NotImplemented


_TYPES: dict[Merge, type[Sum | Mean | Std | Max | Min | Last]] = {
    "sum": Sum,
    "mean": Mean,
    "std": Std,
    "max": Max,
    "min": Min,
    "last": Last,
}


Values = float | Iterable[float] | Mean
"""What a metric is made of: one number, several, or the sum of several with their count."""


def declared(values: Mapping[str, Values]) -> Metrics:
    """Each metric of its values, as `names` declares that it merges.

    Raises:
        KeyError: a name is not declared.
        TypeError: a sum with its count is given for what is no mean.
    """
    return {name: _declared(name, of_name) for name, of_name in values.items()}


def _declared(name: str, values: Values) -> Metric:
    merge = merge_of(name)
    if merge is None:
        raise KeyError(f"metric {name!r} is not declared in telemetry/names.py")
    kind = _TYPES[merge]
    if not isinstance(values, Mean):
        return kind.of(values if isinstance(values, Iterable) else [values])
    _refuse_undeclared(name, values)
    return values


def merge(*parts: Mapping[str, Metric]) -> Metrics:
    """The metrics of all `parts` together, each name merged as it is declared; a name that only some have is kept.

    Raises TypeError, naming the metric, when two parts give it different types, or one another type than declared.
    """
    merged: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            _refuse_undeclared(name, metric)
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
    """The number of each metric, for the sinks. TypeError for one of another type than declared."""
    for name, metric in metrics.items():
        _refuse_undeclared(name, metric)
    return {name: float(metric.value) for name, metric in metrics.items()}


def _refuse_undeclared(name: str, metric: Metric) -> None:
    """TypeError where the name is declared and the metric is of another type."""
    merge = merge_of(name)
    if merge is not None and type(metric) is not (expected := _TYPES[merge]):
        raise TypeError(
            f"metric {name!r} is a {type(metric).__name__}, but telemetry/names.py declares that it merges as "
            f'"{merge}": make it a {expected.__name__}, as `declared` does'
        )


def _same_type(left: object, right: object) -> bool:
    return type(left) is type(right)
