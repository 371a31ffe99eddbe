"""Lines, bands and their axes."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megarl.report.figure import Line, LineFigure, Values, finite
from megarl.report.scales import Scale, integer_scale, linear_scale, log_scale, value_domain
from megarl.report.sheet import Box, Sheet, dots, draw_axes, left_margin, trace

_SHORT = 40
"""Up to this many values of a line each is shown as a point."""
_MOST_STRONG = 24
"""Of more lines the bands and the single runs are fainter, so that means are seen through them."""


def draw_lines(sheet: Sheet, figure: LineFigure, frame: Box) -> tuple[Box, Scale]:
    """Bands below single runs below means; the first line on top where lines meet."""
    y_of = line_scales(figure)
    left = frame.left + left_margin(sheet, y_of, frame.bottom, frame.top)
    box, y = Box(left, frame.top, frame.right, frame.bottom), y_of(frame.bottom, frame.top)
    x = _x_scale(figure, box)
    draw_axes(sheet, box, x, y)
    few = len(figure.lines) <= _MOST_STRONG
    for line in figure.lines:
        if line.low is not None and line.high is not None:
            _draw_band(sheet, line, x, y, opacity=0.18 if few else 0.08)
    last_first = figure.lines[::-1]
    for line in sorted(last_first, key=lambda line: (not line.guide, not line.single)):
        _draw_line(sheet, line, x, y, stepped=figure.stepped, faint=0.45 if few else 0.25)
    return box, x


def line_scales(figure: LineFigure) -> Callable[[float, float], Scale]:
    """The value axis, for a start and an end on paper."""
    every = finite(np.concatenate([line.y for line in figure.lines]))
    if figure.axis == "log":
        positive = every[every > 0]
        low, high = float(positive.min()), float(positive.max())
        return lambda start, end: log_scale(low, high, start=start, end=end)
    low, high = value_domain(_with_bands(figure, every), from_zero=figure.axis == "from_zero", min_span=figure.min_span)
    return lambda start, end: linear_scale(low, high, start=start, end=end, count=4)


def _with_bands(figure: LineFigure, values: Values) -> list[float]:
    """The ends of the lines, and of their bands as far as half of what the lines cover: an interval of two seeds, which
    is wide, must not flatten the lines. Where all lines have one sign, no band gives the axis another."""
    low, high = float(values.min()), float(values.max())
    room = max(high - low, figure.min_span, 0.2 * abs(high), 0.2 * abs(low)) / 2
    bands = [ends for line in figure.lines for ends in (line.low, line.high) if ends is not None]
    reached = finite(np.concatenate([*bands, values]))
    least, most = max(float(reached.min()), low - room), min(float(reached.max()), high + room)
    return [max(least, 0.0) if low >= 0 else least, min(most, 0.0) if high <= 0 else most, low, high]


def _x_scale(figure: LineFigure, box: Box) -> Scale:
    every = np.concatenate([line.x for line in figure.lines if len(line.x)])
    low, high = float(every.min()), float(every.max())
    if figure.x_axis == "log":
        return log_scale(low, max(high, low * 1.5), start=box.left, end=box.right, base=2, nice=False, most=10)
    if figure.stepped:
        return linear_scale(low, high, start=box.left, end=box.right, count=6, nice=False)
    return integer_scale(low, high, start=box.left, end=box.right, count=6)


def _draw_band(sheet: Sheet, line: Line, x: Scale, y: Scale, *, opacity: float) -> None:
    assert line.low is not None
    assert line.high is not None
    known = np.isfinite(line.low) & np.isfinite(line.high)
    data = []
    for start, end in _stretches(known):
        across = [x(value) for value in line.x[start:end]]
        upper = [_clamped(y, value) for value in line.high[start:end]]
        lower = [_clamped(y, value) for value in line.low[start:end]]
        if end - start == 1:  # an interval at one step: a bar of it
            data.append(f"M{across[0] - 1.5:.1f},{upper[0]:.1f}h3V{lower[0]:.1f}h-3z")
            continue
        outline = [*zip(across, upper, strict=True), *zip(reversed(across), reversed(lower), strict=True)]
        data.append(trace(outline) + "z")
    sheet.path("".join(data), fill=line.colour, opacity=opacity, name=_classes(line, "band"))


def _clamped(scale: Scale, value: float) -> float:
    """A band may reach beyond what the axis shows: it is cut off there."""
    return scale(min(max(value, scale.low), scale.high))


def _draw_line(sheet: Sheet, line: Line, x: Scale, y: Scale, *, stepped: bool, faint: float) -> None:
    """faint: opacity of a single run."""
    usable = np.isfinite(line.y) & ((line.y > 0) | (y.kind == "linear"))
    points = [(x(a), y(b) if good else math.nan) for a, b, good in zip(line.x, line.y, usable, strict=True)]
    name = _classes(line, "single" if line.single else "mean")
    width, opacity = (0.9, faint) if line.single else (line.width, 1.0)
    shape = _staircase(points, floor=y.start) if stepped else points
    sheet.path(trace(shape), stroke=line.colour, width=width, dash=line.dash, opacity=opacity, name=name)
    if line.guide or stepped:
        return
    short = len(points) <= _SHORT and not line.single
    seen = [point for index, point in enumerate(points) if short or _is_lonely(usable, index)]
    sheet.path(dots(seen), stroke=line.colour, width=2.4 * width, opacity=opacity, name=name, round_ends=True)


def _staircase(points: Sequence[tuple[float, float]], *, floor: float) -> list[tuple[float, float]]:
    """The outline of a histogram, down to the axis where a bin is empty; without the empty ones at both ends."""
    known = [index for index, (_, level) in enumerate(points) if not math.isnan(level)]
    if not known:
        return []
    shown = [(x, floor if math.isnan(level) else level) for x, level in points[known[0] : known[-1] + 2]]
    steps = [(shown[0][0], floor)]
    for (left, level), (right, _) in pairwise(shown):
        steps += [(left, level), (right, level)]
    return [*steps, (shown[-1][0], floor)]


def _classes(line: Line, kind: str) -> str:
    return kind if line.group is None else f"{kind} g{line.group}"


def _is_lonely(usable: NDArray[np.bool_], index: int) -> bool:
    """A value without neighbours, which a line cannot show."""
    around = usable[max(0, index - 1) : index + 2]
    return bool(usable[index]) and int(around.sum()) == 1


def _stretches(known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
