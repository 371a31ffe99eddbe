"""A sheet of SVG: its format, and the few marks that figures are made of. Coordinates are in units of the view box."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import escape

from megarl.report.colours import DASHES, LIGHT
from megarl.report.scales import Scale

_CHARACTER = 0.56
"""Width of one, in font sizes; digits of Helvetica are as wide as that."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How large a figure is drawn, in what colours, and what it says itself."""

    width: float
    height: float
    """Of the plot with its axes, without title and key."""
    font: float
    unit: str = ""
    """"in", "px": the drawing has a size, of `scale` each; "": it is as wide as its place."""
    per_unit: float = 1.0
    """Units of the view box in one."""
    paint: Mapping[str, str] = field(default_factory=lambda: LIGHT)
    """Colour by name."""
    small: float = 0.92
    """Size of axes' and subtitles' text, in `font`."""
    large: float = 1.15
    """Of the title."""
    titled: bool = False
    """Draw title, subtitle and key; a page has them as text beside the drawing."""

    @property
    def stroke(self) -> float:
        """1 on a page; thinner in a small print."""
        return self.font / 12


PAGE = Format(width=400, height=236, font=12, paint={name: f"var(--{name})" for name in LIGHT})
PICTURE = Format(width=560, height=300, font=13, unit="px", titled=True)


def text_width(text: str, font: float) -> float:
    """About."""
    return len(text) * font * _CHARACTER


class Sheet:
    """Collects the marks of one drawing."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._parts: list[str] = []

    def paint(self, colour: str) -> str:
        """The colour of a name; what is no name is a colour already."""
        return self.form.paint.get(colour, colour)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        colour: str = "ink",
        size: float = 1.0,
        bold: bool = False,
    ) -> None:
        """A line of text whose base line is at `y`."""
        weight = " font-weight='600'" if bold else ""
        self._parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{self.paint(colour)}' "
            f"font-size='{size * self.form.font:.1f}'{weight}>{escape(text)}</text>"
        )

    def path(
        self,
        data: str,
        *,
        stroke: str | None = None,
        fill: str | None = None,
        width: float = 1.0,
        dash: int = 0,
        opacity: float = 1.0,
        name: str = "",
        round_ends: bool = False,
    ) -> None:
        """A path. `name`: its classes."""
        if not data:
            return
        given = [f"class='{name}'"] if name else []
        given.append(f"fill='{self.paint(fill) if fill else 'none'}'")
        if stroke:
            given.append(f"stroke='{self.paint(stroke)}' stroke-width='{width * self.form.stroke:.2f}'")
            given.append(f"stroke-linejoin='round' stroke-linecap='{'round' if round_ends else 'butt'}'")
        if DASHES[dash]:
            numbers = (f"{float(number) * self.form.stroke:.3g}" for number in DASHES[dash].split())
            given.append(f"stroke-dasharray='{' '.join(numbers)}'")
        if opacity < 1:
            given.append(f"opacity='{opacity:g}'")
        self._parts.append(f"<path {' '.join(given)} d='{data}'/>")

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: str, *, name: str = "") -> None:
        """A filled one."""
        given = f"class='{name}' " if name else ""
        self._parts.append(
            f"<rect {given}x='{left:.2f}' y='{top:.2f}' width='{right - left:.2f}' height='{bottom - top:.2f}' "
            f"fill='{self.paint(colour)}'/>"
        )

    def add(self, markup: str) -> None:
        """What is SVG already."""
        self._parts.append(markup)

    def body(self) -> str:
        return "".join(self._parts)


def trace(points: Sequence[tuple[float, float]]) -> str:
    """A polyline, in tenths of a unit; where y is NaN it is interrupted."""
    parts: list[str] = []
    at: tuple[int, int] | None = None
    for x, y in points:
        if math.isnan(y):
            at = None
            continue
        now = round(10 * x), round(10 * y)
        if at is None:
            parts.append(f"M{_tenths(now[0])},{_tenths(now[1])}")
        elif now != at:
            parts.append(f"l{_tenths(now[0] - at[0])},{_tenths(now[1] - at[1])}")
        at = now
    return "".join(parts)


def _tenths(number: int) -> str:
    whole, rest = divmod(abs(number), 10)
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}" if not rest else f"{sign}{whole or ''}.{rest}"


def dots(points: Sequence[tuple[float, float]]) -> str:
    """A point each, for a path with round ends."""
    return "".join(f"M{x:.1f},{y:.1f}h.01" for x, y in points if not math.isnan(y))


@dataclass(frozen=True)
class Box:
    """The plot between its axes."""

    left: float
    top: float
    right: float
    bottom: float


def draw_axes(sheet: Sheet, box: Box, x: Scale | None, y: Scale | None) -> None:
    """Grid, ticks and their labels; zero stands out where values have both signs."""
    font = sheet.form.font
    if y is not None:
        labels = y.labels()
        for tick, label in zip(y.ticks, labels, strict=True):
            at = y(tick)
            strong = tick == 0 and y.low < 0 < y.high
            sheet.path(f"M{box.left:.1f},{at:.1f}H{box.right:.1f}", stroke="muted" if strong else "grid")
            sheet.text(
                box.left - 0.5 * font, at + 0.35 * font, label, anchor="end", colour="muted", size=sheet.form.small
            )
    if x is not None:
        sheet.path(f"M{box.left:.1f},{box.bottom:.1f}H{box.right:.1f}", stroke="axis")
        for tick, label in _apart(x, font):
            at = x(tick)
            sheet.path(f"M{at:.1f},{box.bottom:.1f}v{0.3 * font:.1f}", stroke="axis")
            middle = min(at, sheet.form.width - text_width(label, sheet.form.small * font) / 2)
            sheet.text(middle, box.bottom + 1.35 * font, label, anchor="middle", colour="muted", size=sheet.form.small)


def _apart(scale: Scale, font: float) -> list[tuple[float, str]]:
    """The ticks whose labels do not touch the one before."""
    shown: list[tuple[float, str]] = []
    end = -math.inf
    for tick, label in zip(scale.ticks, scale.labels(), strict=True):
        half = text_width(label, font) / 2
        if scale(tick) - half > end + 0.6 * font:
            shown.append((tick, label))
            end = scale(tick) + half
    return shown


def left_margin(sheet: Sheet, scale_of: Callable[[float, float], Scale], bottom: float, top: float) -> float:
    """Room for the labels of a value axis between `bottom` and `top`."""
    font = sheet.form.font
    return 0.9 * font + max(text_width(label, sheet.form.small * font) for label in scale_of(bottom, top).labels())
