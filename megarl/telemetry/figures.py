"""The figures of a run and its report, made from the files of the run directory alone; safe to make while it runs."""

import io
import json
from pathlib import Path
from typing import Any

from megarl.telemetry.atomic_file import replace_atomically, write_text_atomically
from megarl.telemetry.charts import build_charts, build_overview, style
from megarl.telemetry.report import Figure, ReportFacts, format_report
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics

_PNG_SCALE = 2.0
"""Pixels per point: sharp on a high-density screen and in print."""


def write_run_figures(run_dir: Path | str) -> list[Path]:
    """Make figures/<chart>.png, figures/overview.png and report.html of a run; existing ones are replaced.

    Returns the files written. Charts whose metrics the run did not log are left out. Only metrics.jsonl is needed; the
    configuration, versions and state are shown where they exist. ValueError when no step has been logged yet.
    """
    run = RunDirectory(Path(run_dir).expanduser().resolve())
    if not run.metrics_path.is_file():
        raise ValueError(f"{run.path} has no metrics.jsonl; expected a run directory that megarl made")
    rows = read_metrics(run.metrics_path)
    if not rows:
        raise ValueError(f"{run.metrics_path} holds no complete line yet; try again after the first step")
    run.figures.mkdir(exist_ok=True)
    charts = build_charts(rows)
    written, figures = [], []
    for key, chart in charts.items():
        written.append(_write_png(style(chart), run.figures / f"{key}.png"))
        figures.append(Figure(title=chart.title.text, svg=_svg(style(chart))))
    if charts:
        written.append(_write_png(build_overview(charts), run.figures / "overview.png"))
    write_text_atomically(run.report_path, format_report(rows, figures, _read_facts(run)))
    return [*written, run.report_path]


def _write_png(chart: Any, path: Path) -> Path:
    with replace_atomically(path) as partial:
        chart.save(partial, format="png", scale_factor=_PNG_SCALE)
    return path


def _svg(chart: Any) -> str:
    text = io.StringIO()
    chart.save(text, format="svg")
    return text.getvalue()


def _read_facts(run: RunDirectory) -> ReportFacts:
    versions = run.path / "versions.json"
    return ReportFacts(
        name=run.path.name,
        state=json.loads(run.state_path.read_text(encoding="utf-8")) if run.state_path.is_file() else None,
        versions=json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else None,
        config_toml=run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else None,
    )
