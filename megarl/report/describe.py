"""A figure in words and as a table: for screen readers, for who wants the numbers, and where nothing is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from megarl.report.figure import (
    AnyFigure,
    BarFigure,
    HeatFigure,
    Line,
    LineFigure,
    PairFigure,
    Part,
    ScatterFigure,
    StackFigure,
    Values,
)

_SAID = 6
"""Lines whose numbers an alternative text has; the table has all."""
_MOST_ROWS, _MOST_COLUMNS = 40, 9
"""Of a table with a row per step; beyond, a table has a row per line."""


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; `note` says what is not in it."""

    heads: list[str]
    rows: list[list[str]]
    note: str = ""


def number(value: float | None) -> str:
    """Four digits; "–" where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def describe(figure: AnyFigure) -> str:
    """The alternative text: title, axes, and of every line what it begins and ends with and its extremes."""
    head = f"{figure.title}, {figure.subtitle}."
    if figure.y_title:
        head += f" {figure.y_title} over {figure.x_title}."
    match figure:
        case LineFigure():
            lines = [line for line in figure.lines if not (line.single or line.guide)]
            said = [_say_line(line.label, line.x, line.y, line) for line in lines]
        case StackFigure():
            said = [_say_line(part.label, figure.x, part.values) for part in figure.parts]
        case HeatFigure():
            parts = [part for band in figure.bands for part in band.rows]
            said = [_say_line(part.label, figure.x, part.values) for part in parts]
        case ScatterFigure():
            said = [f"{cloud.label}." for cloud in figure.clouds]
        case BarFigure():
            said = [f"{bar.label}: {number(sum(bar.values))} in all." for bar in figure.bars]
        case PairFigure():
            said = [
                f"{row.label}: planned {number(row.total)}, measured {number(row.measured)}." for row in figure.rows
            ]
        case _:
            assert_never(figure)
    rest = f" And {len(said) - _SAID} more in the table." if len(said) > _SAID else ""
    return " ".join([head, *said[:_SAID]]) + rest


def _say_line(label: str, x: Values, y: Values, line: Line | None = None) -> str:
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        return f"{label}: no value."
    first, last = known[0], known[-1]
    low, high = known[np.argmin(y[known])], known[np.argmax(y[known])]
    text = f"{label}: {number(y[first])} at {number(x[first])}"
    if len(known) > 1:
        text += f", {number(y[last])}{_interval(line, last)} at {number(x[last])}"
        text += f"; smallest {number(y[low])} at {number(x[low])}, largest {number(y[high])} at {number(x[high])}"
    return text + "."


def _interval(line: Line | None, index: int) -> str:
    if line is None or line.low is None or line.high is None or math.isnan(line.low[index]):
        return ""
    return f" ({number(line.low[index])} to {number(line.high[index])})"


def tabulate(figure: AnyFigure) -> Table:
    """Its numbers: a row per x where those are few, else a row per line."""
    match figure:
        case LineFigure():
            lines = [line for line in figure.lines if not line.guide]
            return _line_table(figure.x_title, lines, stepped=figure.stepped)
        case StackFigure():
            return _part_table(figure.x_title, figure.x, figure.parts)
        case HeatFigure():
            parts = [part for band in figure.bands for part in band.rows]
            return _part_table(figure.x_title, figure.x, parts)
        case ScatterFigure():
            rows = [
                [one.label.partition(":")[0], str(one.num_points), number(one.correlation)] for one in figure.clouds
            ]
            return Table(["", "steps", "correlation"], rows)
        case BarFigure():
            heads = ["", *(label for label, _ in figure.parts), "sum"]
            return Table(heads, [[bar.label, *map(number, bar.values), number(sum(bar.values))] for bar in figure.bars])
        case PairFigure():
            heads = ["", *(label for label, _ in figure.looks)]
            note = f"{figure.limit[0]}: {number(figure.limit[1])}" if figure.limit else ""
            return Table(
                heads, [[row.label, *map(number, row.planned), number(row.measured)] for row in figure.rows], note
            )
    assert_never(figure)


def _line_table(x_title: str, lines: Sequence[Line], *, stepped: bool) -> Table:
    places = sorted({float(value) for line in lines for value in line.x})
    if len(lines) > _MOST_COLUMNS or len(places) > 3 * _MOST_ROWS or stepped:
        return _summary_table([(line.label, line.x, line.y) for line in lines])
    heads, columns = [x_title], []
    for line in lines:
        heads.append(line.label)
        columns.append(dict(zip(line.x.tolist(), map(number, line.y), strict=True)))
        if line.low is not None and line.high is not None:
            heads.append("95 %")
            ends = [_interval(line, index).strip(" ()") or "–" for index in range(len(line.x))]
            columns.append(dict(zip(line.x.tolist(), ends, strict=True)))
    rows = [[number(place), *(column.get(place, "–") for column in columns)] for place in places]
    return _cut(heads, rows)


def _part_table(x_title: str, x: Values, parts: Sequence[Part]) -> Table:
    if len(parts) > _MOST_COLUMNS + 1:
        return _summary_table([(part.label, x, part.values) for part in parts])
    values = np.array([part.values for part in parts]).T
    rows = [[number(step), *map(number, row)] for step, row in zip(x, values, strict=True)]
    return _cut([x_title, *(part.label for part in parts)], rows)


def _cut(heads: list[str], rows: list[list[str]]) -> Table:
    if len(rows) <= _MOST_ROWS:
        return Table(heads, rows)
    chosen = np.linspace(0, len(rows) - 1, _MOST_ROWS).round().astype(int)
    note = f"{_MOST_ROWS} of {len(rows):,} rows; all are in the run's metrics.jsonl"
    return Table(heads, [rows[index] for index in chosen], note)


def _summary_table(lines: Sequence[tuple[str, Values, Values]]) -> Table:
    rows = []
    for label, x, y in lines:
        known = np.flatnonzero(np.isfinite(y))
        if len(known):
            low, high = known[np.argmin(y[known])], known[np.argmax(y[known])]
            cells = [y[known[0]], y[known[-1]], y[low], x[low], y[high], x[high]]
            rows.append([label, *map(number, cells)])
    heads = ["", "first", "last", "smallest", "at", "largest", "at"]
    return Table(heads, rows, "a row per line; every step is in the run's metrics.jsonl")
