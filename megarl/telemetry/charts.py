"""The charts of a run, as Altair specifications; pure functions of the rows of metrics.jsonl.

Every chart works with one step, with missing values (the line has a gap) and leaves out a series that no row has; a
chart without any series is None. A long run is drawn as averages of neighbouring steps, and says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from megarl.telemetry.names import PHASES
from megarl.telemetry.panels import LINE_PANELS, PHASE_COLOURS, SKY, LinePanel
from megarl.telemetry.smoothing import Rows, average_neighbours, moving_mean, moving_window

Points = Sequence[tuple[int, float | None]]

MOST_POINTS = 500
"""Steps a chart shows one by one; those of a longer run are averaged, as a line cannot show more anyway."""
_POINTS_UP_TO = 40
"""With more steps than this, points on the lines would only blur them."""
_WIDTH, _HEIGHT = 460, 210


def build_charts(rows: Rows) -> dict[str, Any]:
    """Every chart these rows have data for, by key, in the order of the report."""
    drawn = average_neighbours(rows, at_most=MOST_POINTS)
    charts = {panel.key: build_line_chart(drawn, panel) for panel in LINE_PANELS}
    charts["time_by_phase"] = build_phase_chart(drawn)
    present = {key: chart for key, chart in charts.items() if chart is not None}
    if len(drawn) < len(rows):
        for chart in present.values():
            chart.title.subtitle += f"; a point stands for up to {math.ceil(len(rows) / MOST_POINTS)} steps"
    return present


def build_overview(charts: Mapping[str, Any]) -> Any:
    """All charts on one page, two in a row, plot areas aligned."""
    page = alt.concat(*charts.values(), columns=2, align="all", bounds="flush", spacing={"row": 128, "column": 92})
    return style(page.resolve_scale(color="independent", x="independent", y="independent"))


def style(chart: Any) -> Any:
    """The look of all charts; applied once, to the outermost."""
    return (
        chart.configure(font="Helvetica Neue, Helvetica, Arial, sans-serif", background="white", padding=14)
        .configure_title(
            anchor="start", frame="group", fontSize=15, subtitleFontSize=11.5, subtitleColor="#5F6368", offset=10
        )
        .configure_axis(
            labelFontSize=11,
            titleFontSize=11.5,
            titleFontWeight="normal",
            titleColor="#3C4043",
            labelColor="#3C4043",
            gridColor="#ECEFF1",
            domainColor="#9AA0A6",
            tickColor="#9AA0A6",
        )
        .configure_view(stroke=None)
        .configure_legend(orient="top", title=None, labelFontSize=11.5, symbolStrokeWidth=3, offset=4, labelLimit=260)
    )


def build_line_chart(rows: Rows, panel: LinePanel) -> Any | None:
    """The panel's lines; None when no row has a finite value of its metrics."""
    lines: list[tuple[str, Points]] = []
    legend: dict[str, str] = {}
    for series in panel.series:
        points: Points = [(_step(row), _usable(row.get(series.metric), panel)) for row in rows]
        if any(value is not None for _, value in points):
            lines.append((series.label, points))
            legend[series.label] = series.colour
    if not lines:
        return None
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
        layers = [_line(points, label, width=2.2) for label, points in lines]
    return (
        alt.layer(*layers)
        .encode(x=_step_axis(rows), y=_value_axis(values, panel), color=_line_colours(legend, short=_is_short(rows)))
        .properties(width=_WIDTH, height=_HEIGHT, title=alt.Title(panel.title, subtitle=panel.subtitle))
    )


def build_phase_chart(rows: Rows) -> Any | None:
    """Seconds of a step by phase, stacked; "other" is what timing_s/step has beyond its phases."""
    values: list[dict[str, Any]] = []
    for row in rows:
        timed = {phase: row.get(f"timing_s/{phase}") or 0.0 for phase in PHASES}
        timed["other"] = max(0.0, (row.get("timing_s/step") or 0.0) - sum(timed.values()))
        for order, (phase, seconds) in enumerate(timed.items()):
            values.append({"step": _step(row), "phase": phase, "seconds": seconds, "order": order})
    present = [phase for phase in PHASE_COLOURS if any(v["phase"] == phase and v["seconds"] > 0 for v in values)]
    if not present:
        return None
    base = alt.Chart(alt.InlineData(values=[value for value in values if value["phase"] in present]))
    # A bar takes 0.8 of a step's room, but one step alone is a bar and not a wall.
    room = _WIDTH / (_step(rows[-1]) - _step(rows[0]) + 1)
    marks = base.mark_bar(size=min(40.0, 0.8 * room)) if _is_short(rows) else base.mark_area()
    return marks.encode(
        x=_step_axis(rows),
        y=alt.Y("seconds:Q", title="seconds", stack="zero", axis=alt.Axis(tickCount=5)),
        order=alt.Order("order:Q"),
        color=alt.Color(
            "phase:N",
            scale=alt.Scale(domain=present, range=[PHASE_COLOURS[phase] for phase in present]),
            legend=alt.Legend(symbolType="square", symbolStrokeWidth=0),
        ),
    ).properties(width=_WIDTH, height=_HEIGHT, title=alt.Title("Time of a step", subtitle="wall-clock, by phase"))


def _line(points: Points, label: str, *, width: float) -> alt.LayerChart:
    """The line, with a point on each value of a short run, and on a long one only where a line cannot be seen."""
    short = len(points) <= _POINTS_UP_TO
    dots = [point for index, point in enumerate(points) if short or _is_lonely(points, index)]
    layers = [_chart(points, label).mark_line(strokeWidth=width)]
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
        legend=alt.Legend(symbolSize=70 if short else 100) if len(legend) > 1 else None,
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
    if low == high:  # one step, or a constant: give the axis an extent
        margin = 0.1 * abs(low) or 1.0
        low, high = (low - margin, high + margin) if low else (0.0, margin)
    axis = alt.Axis(tickCount=5)
    if max(abs(low), abs(high)) < 1e-3:
        axis = alt.Axis(tickCount=5, format="~e", labelExpr="datum.value == 0 ? '0' : datum.label")
    scale = alt.Scale(domain=[low, high], nice=5, zero=False)
    return alt.Y("value:Q", title=panel.y_title, scale=scale, axis=axis)


def _step_axis(rows: Rows) -> Any:
    first, last = _step(rows[0]), _step(rows[-1])
    return alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False),
        axis=alt.Axis(format=",d", tickMinStep=1, tickCount=min(8, last - first + 1), grid=False, labelOverlap=True),
    )


def _is_short(rows: Sequence[Any]) -> bool:
    return len(rows) <= _POINTS_UP_TO


def _step(row: Mapping[str, float | None]) -> int:
    return int(row["step"] or 0)


def _usable(value: float | None, panel: LinePanel) -> float | None:
    if value is None or not math.isfinite(value) or (panel.axis == "log" and value <= 0):
        return None
    return value * panel.scale
