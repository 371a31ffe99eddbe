"""Charts of lines over the steps. A value that is missing is a gap, never a zero."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from megarl.report.axes import HEIGHT, WIDTH, finite, is_short, step_axis, step_of, value_axis
from megarl.report.colours import GREY, SKY
from megarl.report.panels import LinePanel, Series
from megarl.report.smoothing import Rows, moving_mean, moving_window

Points = Sequence[tuple[int, float | None]]


def build_line_chart(rows: Rows, panel: LinePanel) -> Any | None:
    """The panel's lines; None when no row has a finite value of its metrics."""
    drawable = [(series, _points(rows, series, panel)) for series in panel.series]
    shown = [(series, points) for series, points in drawable if _has_news(series, points)]
    if not shown:
        return None
    lines = [(series.label, points) for series, points in shown]
    legend = {series.label: series.colour for series, _ in shown}
    values = [value for _, points in lines for _, value in points if value is not None]
    window = moving_window(len(rows))
    if panel.smooth and window > 1:
        label, points = lines[0]
        means = moving_mean([value for _, value in points], window)
        mean_label = f"moving mean of {window} points"
        legend = {label: SKY, mean_label: legend[label]}
        mean = [(step, value) for (step, _), value in zip(points, means, strict=True)]
        layers = [_line(points, label, width=1.4), _line(mean, mean_label, width=2.8)]
    else:
        # The first series is drawn last: on top where lines meet.
        layers = [_line(points, s.label, width=2.2, dashed=s.dashed) for s, points in reversed(shown)]
    title, subtitle = panel.title, panel.subtitle
    if panel.relative_to_start:
        layers.insert(0, _start_line(lines[0][1]))
        subtitle += _relative_to_start(lines[0][1])
    return (
        alt.layer(*layers)
        .encode(x=step_axis(rows), y=_value_axis(values, panel), color=_line_colours(legend, short=is_short(rows)))
        .properties(width=WIDTH, height=HEIGHT, title=alt.Title(title, subtitle=subtitle))
    )


def _points(rows: Rows, series: Series, panel: LinePanel) -> Points:
    return [(step_of(row), _usable(row.get(series.metric), panel, series.factor)) for row in rows]


def _has_news(series: Series, points: Points) -> bool:
    """Whether the line has a value, and where it must move one that differs by more than rounding."""
    known = [value for _, value in points if value is not None]
    if not known or not series.only_if_moving:
        return bool(known)
    return max(known) - min(known) > 1e-6 * max(map(abs, known))


def _start_line(points: Points) -> Any:
    """The first value, as a dashed line through all steps."""
    first = next(value for _, value in points if value is not None)
    ends = [(points[0][0], first), (points[-1][0], first)]
    return _chart(ends, "start").mark_line(strokeDash=[4, 4], strokeWidth=1.2).encode(color=alt.value(GREY))


def _relative_to_start(points: Points) -> str:
    """The last value as a share of the first, in words; nothing where there is only one, or the first is 0."""
    known = [(step, value) for step, value in points if value is not None]
    (first_step, first), (_, last) = known[0], known[-1]
    return f"; now {last / first:.0%} of step {first_step}'s" if len(known) > 1 and first else ""


def _line(points: Points, label: str, *, width: float, dashed: bool = False) -> alt.LayerChart:
    """The line, with a point on each value of a short run, and on a long one only where a line cannot be seen."""
    dots = [point for index, point in enumerate(points) if is_short(points) or _is_lonely(points, index)]
    dash = {"strokeDash": [5, 4]} if dashed else {}
    layers = [_chart(points, label).mark_line(strokeWidth=width, **dash)]
    if dots:
        layers.append(_chart(dots, label).mark_circle(size=26, opacity=1))
    return alt.layer(*layers)


def _chart(points: Points, label: str) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[{"step": s, "value": v, "series": label} for s, v in points]))


def _is_lonely(points: Points, index: int) -> bool:
    neighbours = [points[i][1] for i in (index - 1, index + 1) if 0 <= i < len(points)]
    return points[index][1] is not None and all(value is None for value in neighbours)


def _line_colours(legend: Mapping[str, str], *, short: bool) -> Any:
    return alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(legend), range=list(legend.values())),
        legend=alt.Legend(symbolSize=70 if short else 100, columns=3 if len(legend) > 3 else 0)
        if len(legend) > 1
        else None,
    )


def _value_axis(values: Sequence[float], panel: LinePanel) -> Any:
    low, high = min(values), max(values)
    if panel.axis == "log":
        powers = [10.0**k for k in range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)]
        scale = alt.Scale(type="log", domain=[powers[0], powers[-1]], nice=False)
        axis = alt.Axis(values=powers[:: math.ceil(len(powers) / 7)], format="~g")
        return alt.Y("value:Q", title=panel.y_title, scale=scale, axis=axis)
    if panel.axis == "from_zero":
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = _widened(low, high, panel.min_span)
    if low == high:  # one step, or a constant: give the axis an extent
        margin = 0.1 * abs(low) or 1.0
        low, high = (low - margin, high + margin) if low else (0.0, margin)
    scale = alt.Scale(domain=[low, high], nice=5, zero=False)
    return alt.Y("value:Q", title=panel.y_title, scale=scale, axis=value_axis(low, high))


def _widened(low: float, high: float, span: float) -> tuple[float, float]:
    """At least `span` wide: around the middle, but values of one sign get no axis of both."""
    missing = max(0.0, span - (high - low))
    below = missing / 2
    if low >= 0.0:
        below = min(below, low)
    elif high <= 0.0:
        below = max(below, missing + high)
    return low - below, high + missing - below


def _usable(value: float | None, panel: LinePanel, factor: float) -> float | None:
    known = finite(value, panel.scale * factor)
    return None if known is None or (panel.axis == "log" and known <= 0) else known
