"""The files of `megarl theory`: theory.json with every number, figures as PNG and SVG, report.html on one page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from megarl.report.charts import style
from megarl.report.figures import format_svg, write_png
from megarl.report.page import Figure, format_details, format_figure, format_page
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.theory.charts import build_theory_charts

_TABLE_STYLE = (
    "<style>th { color: #5f6368; font-weight: 600; border-bottom: 1px solid #e3e6ea; } th.number { text-align: right; }"
    " .wide { overflow-x: auto; } .wide table { white-space: nowrap; } li { margin: 4px 0; }</style>"
)


@dataclass(frozen=True, kw_only=True)
class TheoryTable:
    """One table, as text; the terminal and the page show the same."""

    title: str
    caption: str
    columns: Sequence[str]
    """Headings; those that start with "<" are aligned left and shown without it."""
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Lines below the table."""


@dataclass(frozen=True, kw_only=True)
class TheoryText:
    """What the page says besides tables and figures."""

    says: Sequence[str]
    does_not_say: Sequence[str]
    config_toml: str
    versions: Mapping[str, Any]


def write_theory_files(
    directory: Path, results: Mapping[str, Any], tables: Sequence[TheoryTable], text: TheoryText
) -> list[Path]:
    """Write theory.json, config.toml, figures/<chart>.png and .svg, report.html; existing ones are replaced.

    results: plain dicts, lists and numbers of the studies ("steps", "identities", "counterexamples", "sweep",
        "samples", "training").
    Returns the files written.
    """
    figures_path = directory / "figures"
    figures_path.mkdir(parents=True, exist_ok=True)
    data = directory / "theory.json"
    write_text_atomically(data, json.dumps(_spell_infinity(results), indent=1, allow_nan=False) + "\n")
    config = directory / "config.toml"
    write_text_atomically(config, text.config_toml)
    written, figures = [data, config], []
    for key, chart in build_theory_charts(results).items():
        svg = format_svg(style(chart))
        write_text_atomically(figures_path / f"{key}.svg", svg)
        written += [write_png(style(chart), figures_path / f"{key}.png"), figures_path / f"{key}.svg"]
        figures.append(Figure(title=chart.title.text, svg=svg))
    report = directory / "report.html"
    write_text_atomically(report, _format_report(figures, tables, text))
    return [*written, report]


def _spell_infinity(value: Any) -> Any:
    """JSON has no infinity: a bound that is off is written as "inf"."""
    match value:
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case Mapping():
            return {key: _spell_infinity(item) for key, item in value.items()}
        case list() | tuple():
            return [_spell_infinity(item) for item in value]
    return value


def _format_report(figures: Sequence[Figure], tables: Sequence[TheoryTable], text: TheoryText) -> str:
    parts = [
        _TABLE_STYLE,
        "<h1>Clipping and entropy: theory against computation</h1>",
        "<p class='sub'>Theorems 1 and 2 of arXiv 2509.26114 on tabular and small softmax policies, float64</p>",
        "<h2>What follows</h2>",
        _list(text.says),
        "<h2>What does not follow</h2>",
        _list(text.does_not_say),
        "<h2>Figures</h2>",
        f"<div class='figures'>{''.join(format_figure(figure) for figure in figures)}</div>",
        *(_format_table(table) for table in tables),
        "<h2>Reproduce</h2>",
        format_details("Configuration", text.config_toml),
        format_details("Versions", json.dumps(text.versions, indent=2)),
    ]
    return format_page("Clipping and entropy", parts)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _format_table(table: TheoryTable) -> str:
    left = [column.startswith("<") for column in table.columns]
    heads = "".join(
        f"<th{'' if is_left else ' class=number'}>{escape(column.removeprefix('<'))}</th>"
        for column, is_left in zip(table.columns, left, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if is_left else ' class=number'}>{escape(cell)}</td>"
            for cell, is_left in zip(row, left, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = f"<p class='sub'>{escape(table.caption)}</p>"
    grid = f"<div class='wide'><table><tr>{heads}</tr>{rows}</table></div>"
    return f"<h2>{escape(table.title)}</h2>{caption}{grid}{_list(table.notes) if table.notes else ''}"
