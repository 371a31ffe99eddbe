"""The figures that compare groups of runs: a line of the mean over seeds, its interval, and the single runs."""

from collections.abc import Sequence

import numpy as np

from megarl.report.compared import Compared
from megarl.report.figure import Bar, BarFigure, Line, LineFigure, Values, finite
from megarl.report.groups import Group
from megarl.report.panels import PHASE_COLOURS
from megarl.report.run_data import RunData
from megarl.report.seeds import interval, on_common_steps
from megarl.telemetry.names import PHASES

Series = tuple[Values, Values]


def compare_metric(groups: Sequence[Group], what: Compared) -> LineFigure | None:
    """None where no run has a value."""
    lines: list[Line] = []
    for group in groups:
        lines += group_lines(group, [(run, _scaled(run, what)) for run in group.runs if what.metric in run])
    if not any(len(finite(line.y)) for line in lines):
        return None
    return LineFigure(
        key=what.key,
        title=what.title,
        subtitle=what.subtitle,
        x_title="step",
        y_title=what.y_title,
        lines=tuple(lines),
        axis=what.axis,
        min_span=what.min_span,
    )


def _scaled(run: RunData, what: Compared) -> Series:
    steps, values = run.series(what.metric)
    if what.axis == "log":
        values = np.where(values > 0, values, np.nan)
    return steps, values * what.scale


def group_lines(group: Group, found: Sequence[tuple[RunData, Series]]) -> list[Line]:
    """Of one run its line; of several the mean over them at the steps that all have, with its interval, and each.

    found: those of the group's runs that have something to draw."""
    if not found:
        return []
    if len(found) == 1:
        return [group_line(group, group.label, *found[0][1])]
    steps, values = on_common_steps([series for _, series in found])
    mean, low, high = interval(values)
    label = f"{group.label}, mean of {len(found)}"
    lines = [group_line(group, label, steps, mean, low=low, high=high)] if len(steps) else []
    return lines + [
        Line(label=f"{group.label}, seed {run.seed}", x=x, y=y, colour=group.colour, group=group.index, single=True)
        for run, (x, y) in found
    ]


def group_line(
    group: Group, label: str, x: Values, y: Values, *, low: Values | None = None, high: Values | None = None
) -> Line:
    """In the group's look."""
    return Line(label=label, x=x, y=y, low=low, high=high, colour=group.colour, dash=group.dash, group=group.index)


def compare_phases(groups: Sequence[Group]) -> BarFigure | None:
    """Mean seconds of a step by phase, a bar per group; "other" is what a step has beyond its phases."""
    bars = []
    for group in groups:
        means = [_mean_seconds(run) for run in group.runs if _has_phases(run)]
        if means:
            bars.append(Bar(label=group.label, values=tuple(np.mean(means, axis=0).tolist()), group=group.index))
    if not bars:
        return None
    shown = [index for index in range(len(PHASE_COLOURS)) if any(bar.values[index] > 0 for bar in bars)]
    parts = list(PHASE_COLOURS.items())
    return BarFigure(
        key="time_by_phase",
        title="Time of a step by phase",
        subtitle="wall-clock, mean over all steps and runs of a setting",
        x_title="seconds",
        y_title="",
        parts=tuple(parts[index] for index in shown),
        bars=tuple(
            Bar(label=bar.label, values=tuple(bar.values[index] for index in shown), group=bar.group) for bar in bars
        ),
    )


def _has_phases(run: RunData) -> bool:
    return "timing_s/step" in run and any(f"timing_s/{phase}" in run for phase in PHASES)


def _mean_seconds(run: RunData) -> list[float]:
    timed = [_mean(run, f"timing_s/{phase}") for phase in PHASES]
    return [*timed, max(0.0, _mean(run, "timing_s/step") - sum(timed))]


def _mean(run: RunData, metric: str) -> float:
    known = finite(run.series(metric)[1])
    return float(known.mean()) if len(known) else 0.0
