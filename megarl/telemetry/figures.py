"""The figures of a run and its report, made from the files of the run directory alone; safe to make while it runs."""

import io
import json
import tomllib
from html import escape
from pathlib import Path
from typing import Any

from megarl.config.run import TrainConfig
from megarl.telemetry.atomic_file import replace_atomically, write_text_atomically
from megarl.telemetry.charts import build_charts, build_overview, style
from megarl.telemetry.report import Figure, ReportFacts, format_report
from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics
from megarl.telemetry.token_view import StepUpdates, choose_responses, format_tokens
from megarl.telemetry.traces import survey_traces

_PNG_SCALE = 2.0
"""Pixels per point: sharp on a high-density screen and in print."""


def write_run_figures(run_dir: Path | str) -> list[Path]:
    """Make figures/<chart>.png, figures/overview.png and report.html of a run; existing ones are replaced.

    Returns the files written. Charts whose metrics the run did not log are left out. Only metrics.jsonl is needed; the
    configuration, versions, state and the last step's tokens are shown where they exist. ValueError when no step has
    been logged yet.
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
        written.append(write_png(style(chart), run.figures / f"{key}.png"))
        figures.append(Figure(title=chart.title.text, svg=format_svg(style(chart))))
    if charts:
        written.append(write_png(build_overview(charts), run.figures / "overview.png"))
    write_text_atomically(run.report_path, format_report(rows, figures, _read_facts(run)))
    return [*written, run.report_path]


def write_png(chart: Any, path: Path) -> Path:
    """Draw a styled chart into a PNG file; returns its path."""
    with replace_atomically(path) as partial:
        chart.save(partial, format="png", scale_factor=_PNG_SCALE)
    return path


def format_svg(chart: Any) -> str:
    """A styled chart as SVG text."""
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
        tokens_html=_tokens_html(run),
    )


def _tokens_html(run: RunDirectory) -> str:
    """The tokens of the last step whose rollouts were written; why they cannot be shown where the file is another's."""
    last = max(run.rollouts.glob("step-*.parquet"), default=None)
    if last is None:
        return ""
    try:
        survey = survey_traces(last)
        if survey is None:
            return ""
        rows = read_rollouts(last, sample_ids=choose_responses(survey))
        return format_tokens(survey, rows, updates=_step_updates(run))
    except ValueError as error:
        return f"<h2>Tokens</h2><p class='message'>{escape(str(error))}</p>"


def _step_updates(run: RunDirectory) -> StepUpdates | None:
    """From the run's own configuration; None where the directory has none. Only the section [train] is read, so the
    rest may be that of another version."""
    if not run.config_path.is_file():
        return None
    table = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
    train = TrainConfig.model_validate(table.get("train", {}))
    return StepUpdates(count=train.updates_per_step, mini_batch_responses=train.mini_batch_responses)
