"""Figures as SVG: one drawing for the page, which colours it, and for files."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import numpy as np

from megarl.report.drawn_lines import draw_lines
from megarl.report.drawn_pairs import draw_pairs, pairs_height
from megarl.report.figure import (
    AnyFigure,
    BarFigure,
    HeatFigure,
    LineFigure,
    PairFigure,
    ScatterFigure,
    StackFigure,
    finite,
)
from megarl.report.keys import draw_key, entries_of, largest
from megarl.report.scales import Scale, integer_scale, linear_scale, value_domain
from megarl.report.sheet import Box, Format, Sheet, dots, draw_axes, left_margin, text_width, trace

_MOST_DOTS = 40


@dataclass(frozen=True)
class Drawing:
    """An SVG, and where its plot lies in it."""

    svg: str
    box: Box
    x: Scale | None
    """The horizontal axis, for who points at it."""


def draw_figure(figure: AnyFigure, form: Format, *, label: str = "") -> Drawing:
    """label: what a screen reader says instead of it."""
    sheet = Sheet(form)
    top = _draw_head(sheet, figure) if form.titled else 0.0
    height = form.height
    if isinstance(figure, BarFigure):
        height = form.font * (4.8 + 1.7 * len(figure.bars))
    elif isinstance(figure, PairFigure):
        height = pairs_height(figure, form)
    frame = Box(0.0, top + 1.9 * form.font, form.width - 0.5 * form.font, top + height - 2.9 * form.font)
    if figure.y_title:
        sheet.text(0, top + form.font, figure.y_title, colour="muted", size=form.small)
    box, x = _draw_plot(sheet, figure, frame)
    sheet.text(box.right, box.bottom + 2.6 * form.font, figure.x_title, anchor="end", colour="muted", size=form.small)
    return Drawing(_wrap(sheet, top + height, label), box, x)


def _draw_head(sheet: Sheet, figure: AnyFigure) -> float:
    """Title, subtitle and key; returns where they end."""
    font = sheet.form.font
    y = 1.3 * font
    sheet.text(0, y, figure.title, size=sheet.form.large, bold=True)
    for line in _broken(figure.subtitle, sheet.form.width, sheet.form.small * font):
        y += 1.35 * font
        sheet.text(0, y, line, colour="muted", size=sheet.form.small)
    return draw_key(sheet, entries_of(figure), y + 0.5 * font) + 0.5 * font


def _broken(text: str, width: float, font: float) -> list[str]:
    """In lines that fit."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _wrap(sheet: Sheet, height: float, label: str) -> str:
    form, height = sheet.form, round(height, 1)  # as the view box says it: else an edge of the ground shows
    size = ""
    if form.unit:
        size = f" width='{form.width / form.per_unit:.7g}{form.unit}' height='{height / form.per_unit:.7g}{form.unit}'"
    role = f" role='img' aria-label='{_attribute(label)}'" if label else ""
    # On paper there is no page behind it.
    ground = (
        ""
        if form.paint["card"].startswith("var")
        else f"<rect width='100%' height='100%' fill='{form.paint['card']}'/>"
    )
    family = 'font-family="Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"'
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {form.width:g} {height:.1f}'{size}{role} {family}>"
        f"{ground}{sheet.body()}</svg>"
    )


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&#39;")


def _draw_plot(sheet: Sheet, figure: AnyFigure, frame: Box) -> tuple[Box, Scale | None]:
    match figure:
        case LineFigure():
            return draw_lines(sheet, figure, frame)
        case StackFigure():
            return _draw_stack(sheet, figure, frame)
        case HeatFigure():
            return _draw_heat(sheet, figure, frame)
        case ScatterFigure():
            return _draw_scatter(sheet, figure, frame)
        case BarFigure():
            return _draw_bars(sheet, figure, frame)
        case PairFigure():
            return draw_pairs(sheet, figure, frame), None
    assert_never(figure)


def boxed(sheet: Sheet, frame: Box, scale_of: Callable[[float, float], Scale]) -> tuple[Box, Scale]:
    """The plot right of its value axis, and the axis."""
    left = frame.left + left_margin(sheet, scale_of, frame.bottom, frame.top)
    return Box(left, frame.top, frame.right, frame.bottom), scale_of(frame.bottom, frame.top)


def _steps(x: np.ndarray, starts: np.ndarray, box: Box) -> Scale:
    scale = integer_scale(x[0], x[-1], start=box.left, end=box.right, count=6)
    return Scale(starts[0], x[-1] + 0.5, box.left, box.right, scale.ticks)


def _draw_stack(sheet: Sheet, figure: StackFigure, frame: Box) -> tuple[Box, Scale]:
    values = np.array([part.values for part in figure.parts])
    up, down = np.maximum(values, 0).cumsum(axis=0), np.minimum(values, 0).cumsum(axis=0)
    low, high = value_domain([float(down.min()), float(up.max()), figure.top or 0.0], from_zero=True, min_span=0)
    if figure.top is not None:
        high = figure.top
    box, y = boxed(sheet, frame, lambda start, end: linear_scale(low, high, start=start, end=end, count=4))
    x = _steps(figure.x, figure.starts, box)
    draw_axes(sheet, box, x, y)
    gap = 0.1 if len(figure.x) <= _MOST_DOTS else 0.0
    for row, part in enumerate(figure.parts):
        bases = np.where(values[row] >= 0, up[row], down[row])
        data = []
        for step, begin, end, size in zip(figure.x, figure.starts, bases, values[row], strict=True):
            left, right = x(begin + gap), x(step + 0.5 - gap)
            if size:
                data.append(f"M{left:.1f},{y(end - size):.1f}H{right:.1f}V{y(end):.1f}H{left:.1f}z")
        sheet.path("".join(data), fill=part.colour)
    if figure.total:
        middles = (figure.starts + figure.x + 0.5) / 2
        line = [(x(step), y(value)) for step, value in zip(middles, values.sum(axis=0), strict=True)]
        sheet.path(trace(line), stroke="ink", width=1.6)
        if len(line) <= _MOST_DOTS:
            sheet.path(dots(line), stroke="ink", width=4.5, round_ends=True)
    return box, x


def _draw_heat(sheet: Sheet, figure: HeatFigure, frame: Box) -> tuple[Box, Scale]:
    labels = [part.label for band in figure.bands for part in band.rows]
    font = sheet.form.font
    left = frame.left + 0.9 * font + max(text_width(label, sheet.form.small * font) for label in labels)
    box = Box(left, frame.top, frame.right, frame.bottom)
    x = _steps(figure.x, figure.starts, box)
    gap = 0.7
    height = (box.bottom - box.top) / (len(labels) + gap * (len(figure.bands) - 1))
    draw_axes(sheet, box, x, None)
    top = box.top
    for band in figure.bands:
        most = largest(band.rows)
        for part in band.rows:
            sheet.text(
                left - 0.5 * font,
                top + height / 2 + 0.35 * font,
                part.label,
                anchor="end",
                colour="muted",
                size=sheet.form.small,
            )
            sheet.rectangle(left, top, box.right, top + height, band.pale)
            for step, begin, value in zip(figure.x, figure.starts, part.values, strict=True):
                cell = f"M{x(begin):.1f},{top:.1f}H{x(step + 0.5):.1f}v{height:.1f}H{x(begin):.1f}z"
                if math.isnan(value):
                    sheet.path(cell, fill="card")
                elif value > 0:
                    sheet.path(cell, fill=band.full, opacity=round(0.08 + 0.92 * min(value / most, 1.0), 3))
            top += height
        top += gap * height
    return box, x


def _draw_scatter(sheet: Sheet, figure: ScatterFigure, frame: Box) -> tuple[Box, None]:
    every = [value for cloud in figure.clouds for value in (*finite(cloud.x), *finite(cloud.y))]
    low, high = value_domain(every, from_zero=True, min_span=0)
    scale = partial(linear_scale, low, high, count=4)
    box, y = boxed(sheet, frame, lambda start, end: scale(start=start, end=end))
    x = scale(start=box.left, end=box.right)
    draw_axes(sheet, box, x, y)
    sheet.path(f"M{box.left:.1f},{box.bottom:.1f}L{box.right:.1f},{box.top:.1f}", stroke="grey", dash=1, width=1.3)
    for cloud in figure.clouds:
        points = [(x(a), y(b)) for a, b in zip(cloud.x, cloud.y, strict=True)]
        name = "" if cloud.group is None else f"g{cloud.group}"
        width = 5 if len(points) <= 100 else 3.5
        sheet.path(dots(points), stroke=cloud.colour, width=width, opacity=0.75, name=name, round_ends=True)
    return box, None


def _draw_bars(sheet: Sheet, figure: BarFigure, frame: Box) -> tuple[Box, None]:
    font = sheet.form.font
    most = int(0.4 * sheet.form.width / (sheet.form.small * font * 0.56))
    names = [bar.label if len(bar.label) <= most else bar.label[: most - 1] + "…" for bar in figure.bars]
    left = frame.left + 0.9 * font + max(text_width(name, sheet.form.small * font) for name in names)
    box = Box(left, frame.top, frame.right, frame.bottom)
    longest = max(sum(bar.values) for bar in figure.bars) or 1.0
    x = linear_scale(0.0, longest, start=box.left, end=box.right, count=4)
    draw_axes(sheet, box, x, None)
    height = (box.bottom - box.top) / len(figure.bars)
    for index, (bar, name) in enumerate(zip(figure.bars, names, strict=True)):
        top, at = box.top + index * height, 0.0
        classes = "" if bar.group is None else f"g{bar.group}"
        sheet.text(
            left - 0.5 * font, top + height / 2 + 0.35 * font, name, anchor="end", colour="muted", size=sheet.form.small
        )
        for (_, colour), value in zip(figure.parts, bar.values, strict=True):
            sheet.rectangle(x(at), top + 0.15 * height, x(at + value), top + 0.85 * height, colour, name=classes)
            at += value
    return box, None
