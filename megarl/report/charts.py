"""The charts of a run, as Altair specifications; pure functions of the rows of metrics.jsonl.

Every chart works with one step, with missing values (the line has a gap) and leaves out a series that no row has; a
chart without any series is None. A long run is drawn as averages of neighbouring steps, and says so.
"""

import math
from collections.abc import Mapping
from typing import Any, assert_never

import altair as alt
from altair.utils.schemapi import debug_mode

from megarl.report.heat_charts import build_heat_chart
from megarl.report.line_charts import build_line_chart
from megarl.report.panels import PANELS, HeatPanel, LinePanel, Panel, StackPanel
from megarl.report.smoothing import Rows, average_neighbours
from megarl.report.stacked_charts import build_phase_chart, build_stack_chart

MOST_POINTS = 500
"""Steps a chart shows one by one; those of a longer run are averaged, as a line cannot show more anyway."""


def build_charts(rows: Rows) -> dict[str, Any]:
    """Every chart these rows have data for, by key, in the order of the report."""
    drawn = average_neighbours(rows, at_most=MOST_POINTS)
    # A chart is checked against Vega-Lite's schema as a whole when it is drawn. Checking every part while it is put
    # together as well would take most of the time, as a part holds all of its points.
    with debug_mode(False):
        charts = {panel.key: _build(drawn, panel) for panel in PANELS}
        charts["time_by_phase"] = build_phase_chart(drawn)
    present = {key: chart for key, chart in charts.items() if chart is not None}
    if len(drawn) < len(rows):
        for chart in present.values():
            thinned = f"a point stands for up to {math.ceil(len(rows) / MOST_POINTS)} steps"
            chart.title.subtitle = [chart.title.subtitle, thinned]
    return present


def _build(rows: Rows, panel: Panel) -> Any | None:
    match panel:
        case LinePanel():
            return build_line_chart(rows, panel)
        case StackPanel():
            return build_stack_chart(rows, panel)
        case HeatPanel():
            return build_heat_chart(rows, panel)
    assert_never(panel)


def build_overview(charts: Mapping[str, Any]) -> Any:
    """All charts on one page, two in a row, plot areas aligned; not styled yet."""
    return alt.concat(
        *charts.values(),
        columns=2,
        align="all",
        bounds="flush",
        spacing={"row": 128, "column": 92},
        resolve=alt.Resolve(scale=alt.ScaleResolveMap(color="independent", x="independent", y="independent")),
    )


def style(chart: Any) -> Any:
    """The look of all charts; applied once, to the outermost."""
    # In one call: each `configure_...` would copy the chart with its data.
    return chart.configure(
        font="Helvetica Neue, Helvetica, Arial, sans-serif",
        background="white",
        padding=14,
        title=alt.TitleConfig(
            anchor="start", frame="group", fontSize=15, subtitleFontSize=11.5, subtitleColor="#5F6368", offset=10
        ),
        axis=alt.AxisConfig(
            labelFontSize=11,
            titleFontSize=11.5,
            titleFontWeight="normal",
            titleColor="#3C4043",
            labelColor="#3C4043",
            gridColor="#ECEFF1",
            domainColor="#9AA0A6",
            tickColor="#9AA0A6",
        ),
        view=alt.ViewConfig(stroke=None),
        legend=alt.LegendConfig(
            orient="top", title=None, labelFontSize=11.5, symbolStrokeWidth=3, offset=4, labelLimit=260
        ),
    )
