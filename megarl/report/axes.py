"""What the charts of a run share: their size, their step axis, and which numbers can be drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from megarl.report.smoothing import Rows

WIDTH, HEIGHT = 460, 210
_SHORT = 40
"""Up to this many steps each is shown as a point, or a bar of its own."""


def step_of(row: Mapping[str, float | None]) -> int:
    """The step a row of metrics.jsonl belongs to."""
    return int(row["step"] or 0)


def is_short(rows: Sequence[Any]) -> bool:
    """Whether every row can be seen on its own."""
    return len(rows) <= _SHORT


def step_axis(rows: Rows) -> Any:
    """The horizontal axis; half a step of room on both sides."""
    first, last = step_of(rows[0]), step_of(rows[-1])
    return alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False, padding=0),
        axis=alt.Axis(format=",d", tickMinStep=1, tickCount=min(8, last - first + 1), grid=False, labelOverlap=True),
    )


def bar_width(rows: Rows) -> float:
    """Of the bar of one row: 0.8 of its room, all of it where there are many; one row alone is no wall."""
    return min(40.0, (0.8 if is_short(rows) else 1.0) * WIDTH / len(rows))


def finite(value: float | None, scale: float = 1.0) -> float | None:
    """`value` times `scale`; None where it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else value * scale


def value_axis(low: float, high: float) -> Any:
    """Five ticks; zero stands out where values have both signs; exponents where all are tiny."""
    axis = alt.Axis(tickCount=5)
    if max(abs(low), abs(high)) < 1e-3:
        axis = alt.Axis(tickCount=5, format="~e", labelExpr="datum.value == 0 ? '0' : datum.label")
    if low < 0 < high:
        axis.gridColor = {"condition": {"test": "datum.value === 0", "value": "#5F6368"}, "value": "#ECEFF1"}
    return axis
