"""What one run says of its setting: a number per measure, from the rows of its metrics.jsonl up to a step.

A measure "at the end" is the mean over the last tenth of the steps, at least one: a single step's number is noisy. One
"over the run" is the mean over all steps: of a curve, the area below it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from megarl.ablation.cell_runs import Row

_END_SHARE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a run."""

    name: str
    """In summary.json."""
    title: str
    """Above a column."""
    metric: str
    """In metrics.jsonl."""
    when: Literal["end", "run"]


MEASURES: tuple[Measure, ...] = (
    Measure(name="entropy_end", title="H/H0 end", metric="actor/entropy_over_start", when="end"),
    Measure(name="entropy_mean", title="H/H0 mean", metric="actor/entropy_over_start", when="run"),
    Measure(name="reward_end", title="reward", metric="reward/mean", when="end"),
    Measure(name="clip_low_mean", title="clip-low %", metric="clip_ratio/low_mean", when="run"),
    Measure(name="clip_high_mean", title="clip-high %", metric="clip_ratio/high_mean", when="run"),
    Measure(name="clip_dual_mean", title="dual %", metric="clip_ratio/dual_mean", when="run"),
    Measure(name="length_end", title="tokens", metric="response_length/mean", when="end"),
)


def training_measures(rows: Sequence[Row], upto: int) -> dict[str, float]:
    """By name. Rows without a finite number are left out of a mean, and a measure without any is left out."""
    steps = [row for row in rows if 1 <= _step(row) <= upto]
    end = [row for row in steps if _step(row) > upto - max(1, upto // _END_SHARE)]
    found = {one.name: _mean(end if one.when == "end" else steps, one.metric) for one in MEASURES}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunEvaluation:
    """What the last evaluation inside a run says."""

    step: int
    values: Mapping[str, float]
    """By `eval/<benchmark>/<measure>`: mean@n and pass@k, k from 2."""


def last_evaluation(rows: Sequence[Row], upto: int) -> RunEvaluation | None:
    """The last up to a step; None: there was none after the first step."""
    for row in reversed(rows):
        values = {name: value for name, value in row.items() if is_answers_measure(name) and is_number(value)}
        if values and 1 <= _step(row) <= upto:
            return RunEvaluation(_step(row), values)
    return None


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number: a file that another program has written may have NaN where ours has null."""
    return value is not None and math.isfinite(value)


def is_answers_measure(name: str) -> bool:
    """Whether it is a mean@n or pass@k of an evaluation inside the run; pass@1 is mean@n."""
    _, _, measure = name.rpartition("/")
    return name.startswith("eval/") and measure.startswith(("mean@", "pass@")) and measure != "pass@1"


def _step(row: Row) -> int:
    return int(row["step"] or 0)


def _mean(rows: Sequence[Row], metric: str) -> float | None:
    values = [value for row in rows if is_number(value := row.get(metric))]
    return math.fsum(values) / len(values) if values else None
