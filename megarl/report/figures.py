"""The figures of a run and its report, made from the files of the run directory alone; safe to make while it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from megarl.report.exports import draw_picture, overview_svg, write_png
from megarl.report.figure import AnyFigure
from megarl.report.figure_sets import run_sections
from megarl.report.memory_charts import Planner, no_plan
from megarl.report.page import ReportFacts, format_report
from megarl.report.plots import draw_sections
from megarl.report.problems import Problems
from megarl.report.run_data import read_run
from megarl.report.token_view import format_tokens
from megarl.report.tokens_of_runs import token_source
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.run_directory import RunDirectory


@dataclass(frozen=True)
class RunFigures:
    """What was made of a run."""

    written: list[Path]
    """The last is the page."""
    problems: list[str]
    """For a person: charts that could not be drawn, files that could not be read."""


def write_run_figures(
    run_dir: Path | str, *, page: Path | None = None, pictures: bool = True, planner: Planner = no_plan
) -> RunFigures:
    """Make figures/<figure>.png, figures/overview.png and report.html of a run; existing ones are replaced.

    Of any run, however it ended: figures whose metrics the run did not log are left out, and so is what cannot be drawn
    or read, which the page and the result say. ValueError when `run_dir` is no run directory.

    page: where the page goes instead of RUN/report.html. pictures: False writes the page alone. planner: of the run's
    memory, which is drawn beside what was measured.
    """
    run = RunDirectory(Path(run_dir).expanduser().resolve())
    data = read_run(run)
    problems, target = Problems(), page or run.report_path
    sections = run_sections(data, problems, planner)
    drawn = [figure for section in sections for figure in section.figures]
    written = _write_pictures(drawn, run.figures, problems) if pictures else []
    plots, numbers = draw_sections(sections, problems)
    tokens, tokens_problem = None, None
    with problems.tolerate("the tokens"):
        tokens, tokens_problem = _read_tokens(run, target)
    config = None
    with problems.tolerate(run.config_path.name):
        config = run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else None
    found = [*data.problems, *problems.lines()]
    facts = ReportFacts(
        name=run.path.name,
        status=data.status,
        message=data.message,
        versions=data.versions,
        config_toml=config,
        tokens=tokens,
        tokens_problem=tokens_problem,
        problems=found,
    )
    write_text_atomically(target, format_report(data, plots, numbers, facts))
    return RunFigures([*written, target], found)


def _write_pictures(figures: Sequence[AnyFigure], folder: Path, problems: Problems) -> list[Path]:
    folder.mkdir(exist_ok=True)
    written, svgs = [], []
    for figure in figures:
        with problems.tolerate(f"the picture of {figure.key}"):
            svg = draw_picture(figure)
            written.append(write_png(svg, folder / f"{figure.key}.png"))
            svgs.append(svg)
    if svgs:
        with problems.tolerate("the overview"):
            written.append(write_png(overview_svg(svgs), folder / "overview.png"))
    return written


def _read_tokens(run: RunDirectory, page: Path) -> tuple[Markup | None, str | None]:
    """The reader for the tokens of the run's rollouts; what cannot be shown of them."""
    if not any(run.rollouts.glob("step-*.parquet")):
        return None, None
    return format_tokens([token_source(run, page)])
