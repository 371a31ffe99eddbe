"""Figures as a page shows them: drawn in its colours, with key, table, and their numbers for its script."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megarl.report.describe import Table, describe, tabulate
from megarl.report.drawing import draw_figure
from megarl.report.figure import AnyFigure, ScatterFigure
from megarl.report.figure_sets import FigureSection
from megarl.report.keys import Entry, entries_of
from megarl.report.page_data import dump, figure_json
from megarl.report.problems import Problems
from megarl.report.sheet import PAGE


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure of a page."""

    key: str
    title: str
    subtitle: str
    entries: list[Entry]
    svg: Markup
    table: Table


@dataclass(frozen=True, kw_only=True)
class PlotSection:
    """Under a heading."""

    title: str
    plots: list[Plot]
    note: str = ""


def draw_sections(sections: Sequence[FigureSection], problems: Problems) -> tuple[list[PlotSection], Markup]:
    """(what the page shows, its numbers as JSON). What cannot be drawn is left out and said."""
    drawn, numbers = [], {}
    for section in sections:
        plots = []
        for figure in section.figures:
            with problems.tolerate(f"the figure {figure.key}"):
                plot, facts = _draw(figure)
                plots.append(plot)
                numbers[figure.key] = facts
        if plots or section.note:
            drawn.append(PlotSection(title=section.title, plots=plots, note=section.note))
    return drawn, Markup(dump(numbers))


def _draw(figure: AnyFigure) -> tuple[Plot, dict[str, Any]]:
    drawing = draw_figure(figure, PAGE, label=describe(figure))
    entries = entries_of(figure)
    if not isinstance(figure, ScatterFigure) and any(entry.group is not None for entry in entries):
        entries = []  # the page has one key of all groups
    plot = Plot(
        key=figure.key,
        title=figure.title,
        subtitle=figure.subtitle,
        entries=entries,
        svg=Markup(drawing.svg),
        table=tabulate(figure),
    )
    return plot, figure_json(figure, drawing)
