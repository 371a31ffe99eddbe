"""The look of the charts of `megarl theory`, and their SVG."""

import io
from typing import Any

import altair as alt


def format_svg(chart: Any) -> str:
    """A chart in its look as SVG text."""
    text = io.StringIO()
    style(chart).save(text, format="svg")
    return text.getvalue()


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
