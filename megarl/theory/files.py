"""The files of `megarl theory`: theory.json with every number, figures as PNG and SVG, report.html on one page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.report.exports import write_png
from megarl.report.page import Figure
from megarl.report.templates import render_template
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.theory.charts import build_theory_charts
from megarl.theory.look import format_svg
from megarl.theory.tables import TheoryTable


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
        svg = format_svg(chart)
        write_text_atomically(figures_path / f"{key}.svg", svg)
        written += [write_png(svg, figures_path / f"{key}.png"), figures_path / f"{key}.svg"]
        figures.append(Figure(title=chart.title.text, svg=svg))
    report = directory / "report.html"
    write_text_atomically(
        report,
        render_template(
            "theory.html",
            package="megarl.theory",
            figures=figures,
            tables=tables,
            text=text,
            versions=json.dumps(text.versions, indent=2),
        ),
    )
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
