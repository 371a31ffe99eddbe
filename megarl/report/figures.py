"""The figures of a run and its report, made from the files of the run directory alone; safe to make while it runs."""

import io
import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megarl.config.run import TrainConfig
from megarl.report.charts import build_charts, build_overview, style
from megarl.report.page import Figure, ReportFacts, Row, format_report
from megarl.report.token_view import StepUpdates, choose_responses, format_tokens
from megarl.report.traces import survey_traces
from megarl.telemetry.atomic_file import replace_atomically, write_text_atomically
from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_readable_metrics

_PNG_SCALE = 2.0
"""Pixels per point: sharp on a high-density screen and in print."""


class _Problems:
    """What could not be made, by reason: without the drawing library no chart can be."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}

    def add(self, what: str, reason: str) -> None:
        self._by_reason.setdefault(reason, []).append(what)

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """What goes wrong in the block becomes a line and does not cost the page; a panic of the drawing library, which
        is no Exception, too."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            lines = str(error).strip().splitlines()
            self.add(what, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)

    def lines(self) -> list[str]:
        return [
            f"{what[0]}{f' and {len(what) - 1} more' if len(what) > 1 else ''}: {reason}"
            for reason, what in self._by_reason.items()
        ]


@dataclass(frozen=True)
class RunFigures:
    """What was made of a run."""

    written: list[Path]
    """The last is the page."""
    problems: list[str]
    """For a person: charts that could not be drawn, files that could not be read."""


def write_run_figures(run_dir: Path | str, *, page: Path | None = None, pictures: bool = True) -> RunFigures:
    """Make figures/<chart>.png, figures/overview.png and report.html of a run; existing ones are replaced.

    Of any run, however it ended: charts whose metrics the run did not log are left out, and so is what cannot be drawn
    or read, which the page and the result say. ValueError when `run_dir` is no run directory.

    page: where the page goes instead of RUN/report.html. pictures: False writes the page alone.
    """
    run = RunDirectory(Path(run_dir).expanduser().resolve())
    if not run.metrics_path.is_file() and not run.state_path.is_file():
        raise ValueError(
            f"{run.path} has no metrics.jsonl and no state.json; expected a run directory that megarl made"
        )
    problems = _Problems()
    rows, damaged = read_readable_metrics(run.metrics_path) if run.metrics_path.is_file() else ([], {})
    for line, reason in damaged.items():
        problems.add(f"{run.metrics_path.name}, line {line}", reason)
    if pictures:
        run.figures.mkdir(exist_ok=True)
    written, figures = _draw(rows, run.figures if pictures else None, problems)
    facts = _read_facts(run, problems)
    target = page or run.report_path
    write_text_atomically(target, format_report(rows, figures, facts))
    return RunFigures([*written, target], problems.lines())


def _draw(rows: Sequence[Row], folder: Path | None, problems: _Problems) -> tuple[list[Path], list[Figure]]:
    written, figures = [], []
    charts: dict[str, Any] = {}
    with problems.tolerate("the charts"):
        charts = build_charts(rows) if rows else {}
    for key, chart in charts.items():
        with problems.tolerate(f"the chart {key}"):
            svg = format_svg(chart)
            if folder is not None:
                written.append(write_png(svg, folder / f"{key}.png"))
            figures.append(Figure(title=chart.title.text, svg=svg))
    if charts and folder is not None:
        with problems.tolerate("the overview"):
            written.append(write_png(format_svg(build_overview(charts)), folder / "overview.png"))
    return written, figures


def write_png(svg: str, path: Path) -> Path:
    """Draw the SVG text of a chart into a PNG file; returns its path."""
    import vl_convert

    with replace_atomically(path) as partial:
        partial.write_bytes(vl_convert.svg_to_png(svg, scale=_PNG_SCALE))
    return path


def format_svg(chart: Any) -> str:
    """A chart in its look as SVG text."""
    text = io.StringIO()
    style(chart).save(text, format="svg")
    return text.getvalue()


def _read_facts(run: RunDirectory, problems: _Problems) -> ReportFacts:
    state = versions = config = None
    tokens = tokens_problem = None
    with problems.tolerate(run.state_path.name):
        state = _read_state(run)
    with problems.tolerate(run.versions_path.name):
        versions = run.read_versions() if run.versions_path.is_file() else None
    with problems.tolerate(run.config_path.name):
        config = run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else None
    with problems.tolerate("the tokens"):
        tokens, tokens_problem = _read_tokens(run)
    return ReportFacts(
        name=run.path.name,
        state=state,
        versions=versions,
        config_toml=config,
        tokens=tokens,
        tokens_problem=tokens_problem,
        problems=problems.lines(),
    )


def _read_state(run: RunDirectory) -> dict[str, Any] | None:
    """state.json, with the status as it is now."""
    if not run.state_path.is_file():
        return None
    state = json.loads(run.state_path.read_text(encoding="utf-8"))
    status, message = run.standing()
    return state | {"status": status, "message": message}


def _read_tokens(run: RunDirectory) -> tuple[Markup | None, str | None]:
    """The tokens of the last step whose rollouts were written; why they cannot be shown where the file is another's."""
    last = max(run.rollouts.glob("step-*.parquet"), default=None)
    if last is None:
        return None, None
    try:
        survey = survey_traces(last)
        if survey is None:
            return None, None
        rows = read_rollouts(last, sample_ids=choose_responses(survey))
        return format_tokens(survey, rows, updates=_step_updates(run)), None
    except (ValueError, OSError) as error:
        return None, str(error) if last.name in str(error) else f"{last.name} cannot be read: {error}"


def _step_updates(run: RunDirectory) -> StepUpdates | None:
    """From the run's own configuration; None where the directory has none. Only the section [train] is read, so the
    rest may be that of another version."""
    if not run.config_path.is_file():
        return None
    table = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
    train = TrainConfig.model_validate(table.get("train", {}))
    return StepUpdates(count=train.updates_per_step, mini_batch_responses=train.mini_batch_responses)
