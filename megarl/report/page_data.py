"""The numbers of the figures in the page itself, for the script that reads them out and for whoever parses it.

<script type="application/json" id="figures">: {"figures": {key: {"x": [[...], ...], "lines": [{"label", "group",
"x": which of the figure's x, "y": [...], "low", "high"}], "box", "domain"}}}. Six digits of each; null is NaN.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megarl.report.drawing import Drawing
from megarl.report.figure import (
    AnyFigure,
    BarFigure,
    HeatFigure,
    LineFigure,
    PairFigure,
    ScatterFigure,
    StackFigure,
    Values,
)

MOST_LINES = 60
"""Beyond, the numbers of single runs beside means are not in the page: they are drawn, and in each run's files."""


def figure_json(figure: AnyFigure, drawing: Drawing) -> dict[str, Any]:
    """What the page holds of a figure."""
    places: dict[tuple[float | None, ...], int] = {}
    lines = [
        {"label": label, "group": group, "x": places.setdefault(tuple(_numbers(x)), len(places)), "y": _numbers(y)}
        | {name: _numbers(values) for name, values in ends.items()}
        for label, group, x, y, ends in _lines(figure)
    ]
    box = drawing.box
    facts: dict[str, Any] = {"x": [list(place) for place in places], "lines": lines}
    facts["box"] = [round(value, 1) for value in (box.left, box.top, box.right, box.bottom)]
    if drawing.x is not None:
        facts["domain"] = [*_numbers([drawing.x.low, drawing.x.high]), drawing.x.kind]
    return facts


def dump(figures: dict[str, Any]) -> str:
    """As text that can stand in a script element."""
    text = json.dumps({"figures": figures}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_Line = tuple[str, int | None, Values | list[float], Values, dict[str, Values]]


def _lines(figure: AnyFigure) -> list[_Line]:
    match figure:
        case LineFigure():
            return [
                (line.label, line.group, line.x, line.y, _ends(line.low, line.high))
                for line in figure.lines
                if not line.guide and (not line.single or len(figure.lines) <= MOST_LINES)
            ]
        case StackFigure():
            return [(part.label, None, figure.x, part.values, {}) for part in figure.parts]
        case HeatFigure():
            return [(part.label, None, figure.x, part.values, {}) for band in figure.bands for part in band.rows]
        case ScatterFigure():
            return [(cloud.label, cloud.group, cloud.x, cloud.y, {}) for cloud in figure.clouds]
        case BarFigure():
            indices = [float(index) for index in range(len(figure.parts))]
            return [(bar.label, bar.group, indices, np.array(bar.values), {}) for bar in figure.bars]
        case PairFigure():
            return _pair_lines(figure)
    return []


def _pair_lines(figure: PairFigure) -> list[_Line]:
    """A row each, over the indices of its looks; and the limit."""
    indices = [float(index) for index in range(len(figure.looks))]
    lines: list[_Line] = [(row.label, None, indices, np.array([*row.planned, row.measured]), {}) for row in figure.rows]
    if figure.limit:
        lines.append((figure.limit[0], None, indices[:1], np.array(figure.limit[1:]), {}))
    return lines


def _ends(low: Values | None, high: Values | None) -> dict[str, Values]:
    return {} if low is None or high is None else {"low": low, "high": high}


def _numbers(values: Values | Sequence[float]) -> list[float | int | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded
