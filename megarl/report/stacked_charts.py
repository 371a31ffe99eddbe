"""Charts of what adds up: the phases of a step, shares of tokens, and amounts of both signs."""

from typing import Any

import altair as alt

from megarl.report.axes import HEIGHT, WIDTH, bar_width, finite, is_short, step_axis, step_of, value_axis
from megarl.report.panels import PHASE_COLOURS, StackPanel
from megarl.report.smoothing import Rows
from megarl.telemetry.names import PHASES


def build_phase_chart(rows: Rows) -> Any | None:
    """Seconds of a step by phase, stacked; "other" is what timing_s/step has beyond its phases."""
    values: list[dict[str, Any]] = []
    for row in rows:
        timed = {phase: row.get(f"timing_s/{phase}") or 0.0 for phase in PHASES}
        timed["other"] = max(0.0, (row.get("timing_s/step") or 0.0) - sum(timed.values()))
        values += _entries(step_of(row), timed)
    present = [phase for phase in PHASE_COLOURS if any(v["part"] == phase and v["value"] > 0 for v in values)]
    if not present:
        return None
    shown = [value for value in values if value["part"] in present]
    colours = {phase: PHASE_COLOURS[phase] for phase in present}
    return (
        _stack(rows, shown, colours, as_bars=is_short(rows), y=alt.Y("value:Q", title="seconds", axis=_FIVE_TICKS))
        .encode(x=step_axis(rows))
        .properties(width=WIDTH, height=HEIGHT, title=alt.Title("Time of a step", subtitle="wall-clock, by phase"))
    )


def build_stack_chart(rows: Rows, panel: StackPanel) -> Any | None:
    """The panel's parts on top of each other, negative ones downwards; None where no row has one of them.

    A step without a value of some part draws none of them, as its stack would be wrong.
    """
    values, totals = [], []
    for row in rows:
        parts = {series.label: finite(row.get(series.metric), panel.scale * series.factor) for series in panel.series}
        known = {label: value for label, value in parts.items() if value is not None}
        if len(known) == len(parts):
            values += _entries(step_of(row), known)
            totals.append({"step": step_of(row), "value": sum(known.values())})
    if not values:
        return None
    colours = {series.label: series.colour for series in panel.series}
    low, high = min(value["value"] for value in values), max(value["value"] for value in values)
    scale = alt.Scale(nice=5) if panel.top is None else alt.Scale(domain=[min(low, 0.0), panel.top], clamp=True)
    y = alt.Y("value:Q", title=panel.y_title, axis=value_axis(low, high), scale=scale)
    # Areas of changing sign would cross; bars stay right at any number of steps.
    layers = [_stack(rows, values, colours, as_bars=low < 0 or is_short(rows), y=y)]
    if panel.total:
        line = alt.Chart(alt.InlineData(values=totals))
        layers.append(line.mark_line(color=_INK, strokeWidth=1.8).encode(y="value:Q"))
        if is_short(rows):
            layers.append(line.mark_circle(color=_INK, size=30, opacity=1).encode(y="value:Q"))
    title = alt.Title(panel.title, subtitle=panel.subtitle)
    return alt.layer(*layers).encode(x=step_axis(rows)).properties(width=WIDTH, height=HEIGHT, title=title)


_INK = "#202124"
_FIVE_TICKS = alt.Axis(tickCount=5)


def _entries(step: int, parts: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"step": step, "part": part, "value": value, "order": order}
        for order, (part, value) in enumerate(parts.items())
    ]


def _stack(rows: Rows, values: list[dict[str, Any]], colours: dict[str, str], *, as_bars: bool, y: Any) -> Any:
    base = alt.Chart(alt.InlineData(values=values))
    marks = base.mark_bar(size=bar_width(rows)) if as_bars else base.mark_area()
    y.stack = "zero"
    return marks.encode(
        y=y,
        order=alt.Order("order:Q"),
        color=alt.Color(
            "part:N",
            scale=alt.Scale(domain=list(colours), range=list(colours.values())),
            legend=alt.Legend(symbolType="square", symbolStrokeWidth=0, columns=2 if len(colours) == 4 else 0),
        ),
    )
