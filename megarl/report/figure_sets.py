"""All figures of one run, or of many, under their headings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from megarl.report.compared import CLIPPING, EFFECTS, LEARNING, SAMPLES, SPEED, Compared, Section
from megarl.report.comparison import compare_metric, compare_phases
from megarl.report.distributions import histogram_figures, read_traced, run_histograms
from megarl.report.evaluated import evaluation_metrics, pass_figures, run_pass_figures
from megarl.report.figure import AnyFigure, LineFigure
from megarl.report.groups import Group
from megarl.report.memory_charts import Planner, memory_figures, no_plan
from megarl.report.panels import Series
from megarl.report.predicted import scatter_figure
from megarl.report.problems import Problems
from megarl.report.run_data import RunData
from megarl.report.single import measured_lines, panel_figures
from megarl.report.targets import target_figure
from megarl.report.thinning import thin_line, values_per_line


@dataclass(frozen=True)
class FigureSection:
    """Figures under a heading."""

    title: str
    figures: tuple[AnyFigure, ...]
    note: str = ""
    """Said above them, or in their place."""


def run_sections(run: RunData, problems: Problems, planner: Planner = no_plan) -> list[FigureSection]:
    """Of one run. planner: of its memory."""
    alone = Group(index=0, label=run.name, runs=(run,))
    panels = _tolerated(problems, "the panels", lambda: list(panel_figures(run)))
    evaluations = _tolerated(problems, "the evaluations", lambda: _run_evaluations(run))
    scatter = _tolerated(problems, "predicted_change", lambda: _present(scatter_figure([alone], one_run=True)))
    histograms = _tolerated(
        problems, "the histograms", lambda: run_histograms(alone, read_traced([alone], problems)[0])
    )
    sections = [
        FigureSection("Figures", tuple(panels)),
        FigureSection("Evaluations", tuple(evaluations)),
        FigureSection("Predicted and traced", (*scatter, *histograms)),
    ]
    with problems.tolerate("the memory"):
        figures, note = memory_figures(run, planner)
        sections.append(FigureSection("Memory", tuple(figures), note))
    return _thinned(sections)


def group_sections(groups: Sequence[Group], problems: Problems) -> list[FigureSection]:
    """Of groups of runs, to be compared."""
    runs = [run for group in groups for run in group.runs]
    evaluations = Section("Evaluations", tuple(evaluation_metrics(runs)))
    extra: dict[str, Callable[[], Iterable[AnyFigure]]] = {
        LEARNING.title: lambda: _present(target_figure(groups)),
        "Evaluations": lambda: pass_figures(groups),
        "What moves the entropy": lambda: _present(scatter_figure(groups)),
        "Time": lambda: _present(compare_phases(groups)),
        "Ratios and advantages": lambda: histogram_figures(groups, read_traced(groups, problems)),
    }
    sections = []
    for section in (LEARNING, evaluations, CLIPPING, EFFECTS, Section("Ratios and advantages", ()), SAMPLES, SPEED):
        figures: list[AnyFigure] = []
        for what in section.figures:
            figures += _tolerated(problems, what.key, partial(_compare, groups, what))
        if section.title in extra:
            figures += _tolerated(problems, section.title, extra[section.title])
        sections.append(FigureSection(section.title, tuple(figures)))
    return _thinned(sections)


def _compare(groups: Sequence[Group], what: Compared) -> list[AnyFigure]:
    return _present(compare_metric(groups, what))


def _run_evaluations(run: RunData) -> list[AnyFigure]:
    """Every measure of a benchmark in one figure per kind, over the steps, then pass@k over k."""
    figures: list[AnyFigure] = []
    for what in evaluation_metrics([run]):
        prefix = what.metric.partition("@")[0] + "@"
        names = sorted(
            (name for name in run.columns if name.startswith(prefix)), key=lambda name: int(name.partition("@")[2])
        )
        colours = ("blue", "vermilion", "green", "purple", "orange", "sky", "ink")
        series = [
            Series(metric=name, label=name.rpartition("/")[2], colour=colours[index % len(colours)])
            for index, name in enumerate(names)
        ]
        title = what.title if len(names) == 1 else what.title.partition("@")[0] + "@k"
        lines = measured_lines(run, series, scale=what.scale)
        if lines:
            figures.append(
                LineFigure(
                    key=what.key,
                    title=title,
                    subtitle=what.subtitle,
                    x_title="step",
                    y_title=what.y_title,
                    lines=tuple(lines),
                    axis=what.axis,
                    min_span=what.min_span,
                )
            )
    return figures + run_pass_figures(run)


def _present(figure: AnyFigure | None) -> list[AnyFigure]:
    return [] if figure is None else [figure]


def _tolerated(problems: Problems, what: str, make: Callable[[], Iterable[AnyFigure]]) -> list[AnyFigure]:
    with problems.tolerate(what):
        return list(make())
    return []


def _thinned(sections: Sequence[FigureSection]) -> list[FigureSection]:
    """Sections that have figures or a note, with what a page can hold of every line."""
    return [
        replace(section, figures=tuple(map(thin_figure, section.figures)))
        for section in sections
        if section.figures or section.note
    ]


def thin_figure(figure: AnyFigure) -> AnyFigure:
    """A figure of lines with as many values of each as `thinning.values_per_line` says, of single runs apart."""
    if not isinstance(figure, LineFigure):
        return figure
    num_singles = sum(line.single for line in figure.lines)
    of_others, of_singles = values_per_line(len(figure.lines) - num_singles), values_per_line(num_singles)
    lines = (thin_line(line, of_singles if line.single else of_others) for line in figure.lines)
    return replace(figure, lines=tuple(lines))
