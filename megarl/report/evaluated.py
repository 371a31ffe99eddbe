"""Figures of in-run evaluations: mean@n and pass@k over the steps, and pass@k over k."""

from collections.abc import Sequence

import numpy as np

from megarl.report.compared import Compared
from megarl.report.comparison import group_line, group_lines
from megarl.report.figure import Line, LineFigure
from megarl.report.groups import Group
from megarl.report.run_data import EVALUATION, RunData

_CURVES = ("blue", "vermilion", "green", "purple")
_INTERVAL = "band: 95 % interval over problems"


def evaluation_metrics(runs: Sequence[RunData]) -> list[Compared]:
    """mean@n, pass@n and maj@n of every benchmark over the steps, n the largest that the runs have."""
    names = dict.fromkeys(name for run in runs for name in run.columns if name.startswith(EVALUATION))
    found = []
    for benchmark in dict.fromkeys(name.split("/")[1] for name in names):
        measures = [name.split("/")[2] for name in names if name.split("/")[1] == benchmark]
        for kind, meaning in (
            ("mean", "share of the responses that are correct"),
            ("pass", "probability that one of the responses is correct"),
            ("maj", "probability that the most frequent answer is correct"),
        ):
            sizes = [int(name.partition("@")[2]) for name in measures if name.startswith(f"{kind}@")]
            if sizes and (kind == "mean" or max(sizes) > 1):
                found.append(_measure(benchmark, f"{kind}@{max(sizes)}", kind, meaning))
    return found


def _measure(benchmark: str, measure: str, kind: str, meaning: str) -> Compared:
    return Compared(
        key=f"{benchmark}_{kind}",
        metric=f"{EVALUATION}{benchmark}/{measure}",
        title=f"{benchmark}: {measure}",
        subtitle=f"{meaning}, of the weights after the step",
        y_title="%",
        scale=100,
        axis="data",
        min_span=2,
    )


def pass_figures(groups: Sequence[Group]) -> list[LineFigure]:
    """Of every benchmark pass@k over k in the last evaluation: of several seeds with the interval over them, of one run
    with that over problems."""
    figures = []
    for benchmark in _benchmarks([run for group in groups for run in group.runs]):
        lines: list[Line] = []
        steps: set[int] = set()
        for group in groups:
            curves: list[tuple[RunData, np.ndarray]] = []
            for run in group.runs:
                with_it = [(step, found[benchmark]) for step, found in run.evaluations if benchmark in found]
                if with_it:
                    steps.add(with_it[-1][0])
                    curves.append((run, _curve(with_it[-1][1])))
            lines += _group_curve(group, curves)
        at = f"step {min(steps)}" if len(steps) == 1 else f"the last evaluation, steps {min(steps)} to {max(steps)}"
        figures.append(_pass_figure(benchmark, f"after {at}; band: 95 % over seeds, of one run over problems", lines))
    return figures


def _group_curve(group: Group, curves: Sequence[tuple[RunData, np.ndarray]]) -> list[Line]:
    """curves: [4, k] of a run each: k, value, low, high."""
    if len(curves) == 1:
        (k, value, low, high) = curves[0][1]
        return [group_line(group, group.label, k, value, low=low, high=high)]
    return group_lines(group, [(run, (curve[0], curve[1])) for run, curve in curves])


def run_pass_figures(run: RunData) -> list[LineFigure]:
    """Of every benchmark of one run pass@k over k, after up to four of its evaluations."""
    figures = []
    for benchmark in _benchmarks([run]):
        found = [(step, every[benchmark]) for step, every in run.evaluations if benchmark in every]
        chosen = sorted({round(index) for index in np.linspace(0, len(found) - 1, min(4, len(found)))})
        lines = []
        for number, index in enumerate(chosen):
            step, measures = found[index]
            k, value, low, high = _curve(measures)
            band = {"low": low, "high": high} if index in (chosen[0], chosen[-1]) else {}
            label = "before the first step" if step == 0 else f"after step {step}"
            lines.append(Line(label=label, x=k, y=value, colour=_CURVES[number], dash=number, **band))
        figures.append(_pass_figure(benchmark, f"{_INTERVAL}, of the first and the last", lines))
    return figures


def _pass_figure(benchmark: str, subtitle: str, lines: Sequence[Line]) -> LineFigure:
    return LineFigure(
        key=f"{benchmark}_pass_at_k",
        title=f"{benchmark}: pass@k over k",
        subtitle=f"probability that one of k responses is correct, {subtitle}",
        x_title="k, logarithmic",
        y_title="%",
        lines=tuple(lines),
        axis="data",
        x_axis="log",
        min_span=2,
    )


def _benchmarks(runs: Sequence[RunData]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for _, found in run.evaluations for name in found))


def _curve(measures: dict[str, dict[str, float]]) -> np.ndarray:
    """[4, k]: k, pass@k and its interval in percent."""
    sizes = sorted(int(name[5:]) for name in measures if name.startswith("pass@"))
    ends = [measures[f"pass@{k}"] for k in sizes]
    return np.array([sizes, *([100 * one[key] for one in ends] for key in ("value", "low", "high"))], dtype=np.float64)
