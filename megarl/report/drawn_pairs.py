"""Planned beside measured: two bars per row, and the limit of both."""

import math

from megarl.report.figure import PairFigure
from megarl.report.scales import Scale, linear_scale
from megarl.report.sheet import Box, Format, Sheet, draw_axes, text_width

_ROW = 2.5
"""Height of a row, in fonts."""


def pairs_height(figure: PairFigure, form: Format) -> float:
    """Of the plot with its axes."""
    return form.font * (4.8 + _ROW * len(figure.rows))


def draw_pairs(sheet: Sheet, figure: PairFigure, frame: Box) -> Box:
    """Rows from top to bottom, in each what was planned above what was measured. A value that is missing has no bar."""
    font = sheet.form.font
    left = frame.left + 0.9 * font + max(text_width(row.label, sheet.form.small * font) for row in figure.rows)
    box = Box(left, frame.top, frame.right, frame.bottom)
    ends = [value for row in figure.rows for value in (row.total, row.measured) if not math.isnan(value)]
    most = max([*ends, figure.limit[1] if figure.limit else 0.0]) or 1.0
    x = linear_scale(0.0, most, start=box.left, end=box.right, count=4)
    draw_axes(sheet, box, x, None)
    height = (box.bottom - box.top) / len(figure.rows)
    for index, row in enumerate(figure.rows):
        top = box.top + index * height
        middle = top + height / 2
        sheet.text(
            left - 0.5 * font, middle + 0.35 * font, row.label, anchor="end", colour="muted", size=sheet.form.small
        )
        planned = zip(row.planned, (colour for _, colour in figure.parts), strict=True)
        _draw_bar(sheet, x, list(planned), top + 0.1 * height, middle - 0.02 * height)
        _draw_bar(sheet, x, [(row.measured, figure.measured[1])], middle + 0.02 * height, top + 0.9 * height)
    if figure.limit:
        sheet.path(f"M{x(figure.limit[1]):.1f},{box.top:.1f}V{box.bottom:.1f}", stroke="ink", dash=1, width=1.6)
    return box


def _draw_bar(sheet: Sheet, x: Scale, parts: list[tuple[float, str]], top: float, bottom: float) -> None:
    at = 0.0
    for value, colour in parts:
        if not math.isnan(value) and value > 0:
            sheet.rectangle(x(at), top, x(at + value), bottom, colour)
            at += value
