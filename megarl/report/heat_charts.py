"""Maps of shares over the steps: one row per class of tokens, one column per step."""

from typing import Any

import altair as alt

from megarl.report.axes import HEIGHT, WIDTH, finite, is_short, step_axis, step_of
from megarl.report.panels import HeatBand, HeatPanel
from megarl.report.smoothing import Rows

_GAP = 0.7
"""Rows of room between two bands."""


def build_heat_chart(rows: Rows, panel: HeatPanel) -> Any | None:
    """The panel's bands above each other, each with a colour scale of its own; None where no row has a value.

    A missing value leaves its cell white, which no share is: the smallest has a light tint.
    """
    layers, labels, top = [], {}, 0.0
    for band in panel.bands:
        cells = _cells(rows, band, panel.scale, top)
        if cells:
            layers.append(_layer(band, cells, edge=0.6 if is_short(rows) else 0.0))
        for index, (label, _) in enumerate(band.rows):
            labels[top + index + 0.5] = label
        top += len(band.rows) + _GAP
    if not layers:
        return None
    names = "{" + ", ".join(f"'{position:g}': '{label}'" for position, label in labels.items()) + "}"
    y = alt.Y(
        "y:Q",
        title=panel.y_title,
        scale=alt.Scale(domain=[top - _GAP, 0], nice=False),
        axis=alt.Axis(values=list(labels), labelExpr=f"{names}[datum.value]", grid=False, ticks=False, domain=False),
    )
    return (
        alt.layer(*layers)
        .encode(x=step_axis(rows), x2="x2:Q", y=y, y2="y2:Q")
        .resolve_scale(color="independent")
        .properties(width=WIDTH, height=HEIGHT, title=alt.Title(panel.title, subtitle=panel.subtitle))
    )


def _cells(rows: Rows, band: HeatBand, scale: float, top: float) -> list[dict[str, float]]:
    steps = [step_of(row) for row in rows]
    # Thinned rows carry the last step of those they stand for, so a cell reaches back to its neighbour.
    starts = [steps[0] - 0.5, *(step + 0.5 for step in steps[:-1])]
    return [
        {"step": start, "x2": step + 0.5, "y": top + index, "y2": top + index + 1, "value": value}
        for row, step, start in zip(rows, steps, starts, strict=True)
        for index, (_, metric) in enumerate(band.rows)
        if (value := finite(row.get(metric), scale)) is not None
    ]


def _layer(band: HeatBand, cells: list[dict[str, float]], *, edge: float) -> Any:
    """`edge`: width of the white line around a cell; a long run has no room for it."""
    largest = max(cell["value"] for cell in cells) or 1.0
    legend = alt.Legend(title=band.label, orient="top", gradientLength=110, gradientThickness=9, tickCount=3)
    colour = alt.Color("value:Q", scale=alt.Scale(domain=[0, largest], range=list(band.colours)), legend=legend)
    return alt.Chart(alt.InlineData(values=cells)).mark_rect(stroke="white", strokeWidth=edge).encode(color=colour)
