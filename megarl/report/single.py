"""The figures of one run. The panels say what they show; here they meet the run's numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import assert_never

import numpy as np

from megarl.report.figure import AnyFigure, Band, HeatFigure, Line, LineFigure, Part, StackFigure, Values, finite
from megarl.report.panels import PANELS, PHASE_COLOURS, HeatPanel, LinePanel, Panel, Series, StackPanel
from megarl.report.run_data import RunData
from megarl.report.smoothing import average_columns, moving_mean, moving_window
from megarl.telemetry.names import PHASES

MOST_CELLS = 300
"""Bars or columns of a map that are drawn one by one; those of a longer run are averages of neighbouring steps."""


def panel_figures(data: RunData) -> Iterable[AnyFigure]:
    """Of every panel that the run has data for, in the order of the report."""
    for panel in PANELS:
        if (figure := _build(data, panel)) is not None:
            yield figure
    if (figure := _phase_figure(data)) is not None:
        yield figure


def _build(data: RunData, panel: Panel) -> AnyFigure | None:
    match panel:
        case LinePanel():
            return _line_figure(data, panel)
        case StackPanel():
            return _stack_figure(data, panel)
        case HeatPanel():
            return _heat_figure(data, panel)
    assert_never(panel)


def _line_figure(data: RunData, panel: LinePanel) -> LineFigure | None:
    lines = measured_lines(data, panel.series, scale=panel.scale, log=panel.axis == "log")
    if not lines:
        return None
    subtitle = panel.subtitle
    window = moving_window(len(lines[0].y))
    if panel.smooth and window > 1:
        lines = _smoothed(lines[0], window)
    if panel.relative_to_start:
        subtitle += _relative_to_start(lines[0])
        lines = [_start_line(lines[0]), *lines]
    return LineFigure(
        key=panel.key,
        title=panel.title,
        subtitle=subtitle,
        x_title="step",
        y_title=panel.y_title,
        lines=tuple(lines),
        axis=panel.axis,
        min_span=panel.min_span,
    )


def measured_lines(data: RunData, series: Sequence[Series], *, scale: float, log: bool = False) -> list[Line]:
    """A line of each that has a value which can be drawn, and that moves where it must."""
    lines = (_line(data, one, scale=scale * one.factor, log=log) for one in series)
    return [line for line in lines if line is not None]


def _line(data: RunData, series: Series, *, scale: float, log: bool) -> Line | None:
    steps, values = data.series(series.metric)
    values = values * scale
    if log:
        values = np.where(values > 0, values, np.nan)
    known = finite(values)
    if not len(known) or (series.only_if_moving and np.ptp(known) <= 1e-6 * np.abs(known).max()):
        return None
    return Line(label=series.label, x=steps, y=values, colour=series.colour, dash=int(series.dashed))


def _smoothed(line: Line, window: int) -> list[Line]:
    values = [None if math.isnan(value) else float(value) for value in line.y]
    means = np.array([math.nan if mean is None else mean for mean in moving_mean(values, window)])
    label = f"moving mean of {window} points"
    return [
        Line(label=line.label, x=line.x, y=line.y, colour="grey", width=1.2),
        Line(label=label, x=line.x, y=means, colour=line.colour, width=2.6),
    ]


def _start_line(line: Line) -> Line:
    """The first value, as a dashed line through all steps."""
    first = finite(line.y)[0]
    ends = np.array([line.x[0], line.x[-1]])
    return Line(label="start", x=ends, y=np.array([first, first]), colour="grey", dash=2, width=1.2, guide=True)


def _relative_to_start(line: Line) -> str:
    """The last value as a share of the first, in words; nothing where there is only one, or the first is 0."""
    known = np.flatnonzero(np.isfinite(line.y))
    first, last = line.y[known[0]], line.y[known[-1]]
    return f"; now {last / first:.0%} of step {line.x[known[0]]:.0f}'s" if len(known) > 1 and first else ""


def _stack_figure(data: RunData, panel: StackPanel) -> StackFigure | None:
    """A step without a value of some part draws none of them, as its stack would be wrong."""
    names = [series.metric for series in panel.series]
    found = _whole_columns(data, names)
    if found is None:
        return None
    steps, starts, values, note = found
    return StackFigure(
        key=panel.key,
        title=panel.title,
        subtitle=panel.subtitle + note,
        x_title="step",
        y_title=panel.y_title,
        x=steps,
        starts=starts,
        parts=tuple(
            Part(label=one.label, values=row * panel.scale * one.factor, colour=one.colour)
            for one, row in zip(panel.series, values, strict=True)
        ),
        total=panel.total,
        top=panel.top,
    )


def _whole_columns(data: RunData, names: Sequence[str]) -> tuple[Values, Values, Values, str] | None:
    """(steps, where their bars begin, [names, steps], what the subtitle says) of the steps that have all of them."""
    columns = [data.series(name) for name in names]
    if not all(len(steps) for steps, _ in columns):
        return None
    values = np.array([values for _, values in columns])
    whole = np.isfinite(values).all(axis=0)
    if not whole.any():
        return None
    return _averaged(columns[0][0][whole], values[:, whole])


def _averaged(steps: Values, values: Values) -> tuple[Values, Values, Values, str]:
    x, starts, means = average_columns(steps, values, at_most=MOST_CELLS)
    size = math.ceil(len(steps) / MOST_CELLS)
    return x, starts, means, f"; a bar stands for up to {size} steps" if size > 1 else ""


def _heat_figure(data: RunData, panel: HeatPanel) -> HeatFigure | None:
    """A missing value leaves its cell empty, which no share is: the smallest has a light tint."""
    names = [metric for band in panel.bands for _, metric in band.rows]
    columns = [data.series(name)[1] for name in names]
    steps = data.steps[data.steps > 0]
    if not any(len(finite(column)) for column in columns):
        return None
    values = np.array([column if len(column) else np.full(len(steps), np.nan) for column in columns])
    x, starts, means, note = _averaged(steps, values * panel.scale)
    rows = iter(means)
    return HeatFigure(
        key=panel.key,
        title=panel.title,
        subtitle=panel.subtitle + note,
        x_title="step",
        y_title=panel.y_title,
        x=x,
        starts=starts,
        bands=tuple(
            Band(
                label=band.label,
                rows=tuple(Part(label=label, values=next(rows), colour=band.colour) for label, _ in band.rows),
                pale=f"{band.colour}-pale",
                full=band.colour,
            )
            for band in panel.bands
        ),
    )


def _phase_figure(data: RunData) -> StackFigure | None:
    """Seconds of a step by phase; "other" is what timing_s/step has beyond its phases."""
    steps = data.steps[data.steps > 0]
    timed = [_seconds(data, phase, len(steps)) for phase in PHASES]
    other = np.maximum(0.0, _seconds(data, "step", len(steps)) - sum(timed))
    values = np.array([*timed, other])
    if not values.any():
        return None
    x, starts, means, note = _averaged(steps, values)
    parts = zip(PHASE_COLOURS.items(), means, strict=True)
    return StackFigure(
        key="time_by_phase",
        title="Time of a step",
        subtitle="wall-clock, by phase" + note,
        x_title="step",
        y_title="seconds",
        x=x,
        starts=starts,
        parts=tuple(Part(label=label, values=row, colour=colour) for (label, colour), row in parts if row.any()),
    )


def _seconds(data: RunData, phase: str, count: int) -> Values:
    values = data.series(f"timing_s/{phase}")[1]
    return np.nan_to_num(values) if len(values) else np.zeros(count)
