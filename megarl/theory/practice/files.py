"""The files of `megarl theory RUN|ABLATION`: the numbers, figures as PNG and SVG, report.html on one page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megarl.report.exports import draw_picture, write_png
from megarl.report.page import Figure
from megarl.report.templates import render_template
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.theory.practice.figures import build_practice_figures
from megarl.theory.practice.numbers import ENDING, Practice, write_practice
from megarl.theory.tables import TheoryTable

DOES_NOT_SAY = (
    "Intervals are over seeds, Student's t: with two they are 9 deviations wide to either side. Updates, tokens and "
    "settings of one seed are not independent, so none of them narrows an interval.",
    "The budget is the first order of the states that an update visits, each with logits of its own. What is measured "
    "within a step is the entropy of other states, those of later mini-batches; only weights that states share carry "
    "one to the other. The slope has the size of that, of Adam's own scale and of the aggregation's weights in one.",
    "That the entropy changes around updates with a negative sign is not the clip's doing alone: the same tokens are "
    "trained on besides. A control that clips by a coin tells that (configs/methods/matched-control.toml).",
    "Settings at equal entropy differ in how many steps they took to come there.",
)


def write_practice_files(
    directory: Path, practice: Practice, tables: Sequence[TheoryTable], versions: Mapping[str, Any]
) -> list[Path]:
    """Write NAME.practice.parquet, practice.json (the tables' text), figures/ and report.html; returns the files."""
    figures_path = directory / "figures"
    figures_path.mkdir(parents=True, exist_ok=True)
    stored = directory / f"{practice.name}{ENDING}"
    write_practice(practice, stored)
    told = {"name": practice.name, "notes": list(practice.notes), "tables": [asdict(table) for table in tables]}
    plain = directory / "practice.json"
    write_text_atomically(plain, json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    written, figures = [stored, plain], []
    for figure in build_practice_figures(practice):
        svg = draw_picture(figure)
        write_text_atomically(figures_path / f"{figure.key}.svg", svg)
        written += [write_png(svg, figures_path / f"{figure.key}.png"), figures_path / f"{figure.key}.svg"]
        figures.append(Figure(title=figure.title, svg=svg))
    report = directory / "report.html"
    page = render_template(
        "practice.html",
        package="megarl.theory",
        figures=figures,
        tables=tables,
        title=practice.name,
        notes=practice.notes,
        does_not_say=DOES_NOT_SAY,
        versions=json.dumps(versions, indent=2),
    )
    write_text_atomically(report, page)
    return [*written, report]
