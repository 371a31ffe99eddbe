"""The keys of figures: which look is what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from megarl.report.figure import (
    AnyFigure,
    BarFigure,
    HeatFigure,
    LineFigure,
    PairFigure,
    Part,
    ScatterFigure,
    StackFigure,
    finite,
)
from megarl.report.sheet import Sheet, text_width


@dataclass(frozen=True)
class Entry:
    """One of a key."""

    label: str
    colour: str
    mark: Literal["line", "square", "dot"]
    dash: int = 0
    group: int | None = None


def entries_of(figure: AnyFigure) -> list[Entry]:
    """The figure's own key; none where one line needs no name. Lines of groups have that of the page."""
    match figure:
        case LineFigure():
            lines = [line for line in figure.lines if not (line.single or line.guide)]
            entries = [Entry(line.label, line.colour, "line", line.dash, line.group) for line in lines]
            return entries if len(entries) > 1 or any(entry.group is not None for entry in entries) else []
        case StackFigure():
            total = [Entry("sum", "ink", "line")] if figure.total else []
            return [Entry(part.label, part.colour, "square") for part in figure.parts] + total
        case HeatFigure():
            return [Entry(f"{band.label}, to {largest(band.rows):.3g}", band.full, "square") for band in figure.bands]
        case ScatterFigure():
            return [Entry(cloud.label, cloud.colour, "dot", 0, cloud.group) for cloud in figure.clouds]
        case BarFigure():
            return [Entry(label, colour, "square") for label, colour in figure.parts]
        case PairFigure():
            limit = [Entry(figure.limit[0], "ink", "line", 1)] if figure.limit else []
            return [Entry(label, colour, "square") for label, colour in figure.looks] + limit
    assert_never(figure)


def largest(rows: Sequence[Part]) -> float:
    """Of a map's rows; 1 where all are 0 or missing."""
    return max((float(finite(part.values).max(initial=0.0)) for part in rows), default=0.0) or 1.0


def draw_key(sheet: Sheet, entries: list[Entry], top: float) -> float:
    """Rows of entries below `top`; returns where they end."""
    font, width = sheet.form.font, sheet.form.width
    x, y = 0.0, top
    for entry in entries:
        needed = 2.2 * font + text_width(entry.label, font) + font
        if x and x + needed > width:
            x, y = 0.0, y + 1.45 * font
        middle = y + 0.75 * font
        draw_mark(sheet, entry, x, middle)
        sheet.text(x + 2.2 * font, y + 1.1 * font, entry.label)
        x += needed
    return y + 1.7 * font if entries else top


def draw_mark(sheet: Sheet, entry: Entry, x: float, middle: float) -> None:
    """The look of an entry, 1.8 fonts wide from `x`."""
    font = sheet.form.font
    match entry.mark:
        case "line":
            data = f"M{x:.1f},{middle:.1f}h{1.8 * font:.1f}"
            sheet.path(data, stroke=entry.colour, width=2.6, dash=entry.dash)
        case "square":
            sheet.rectangle(x + 0.5 * font, middle - 0.4 * font, x + 1.3 * font, middle + 0.4 * font, entry.colour)
        case "dot":
            sheet.path(f"M{x + 0.9 * font:.1f},{middle:.1f}h.01", stroke=entry.colour, width=7, round_ends=True)
