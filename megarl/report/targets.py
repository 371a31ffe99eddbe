"""Entropy beside the target that a controller steers it to, between groups of runs.

Both are relative to the entropy that a run begins with, over the steps that are done: the entropy before a step's
updates is what the steps before it have made; the target is the one for a step's end.
"""

from collections.abc import Sequence

import numpy as np

from megarl.report.comparison import group_lines
from megarl.report.figure import Line, LineFigure, Values, finite
from megarl.report.groups import Group
from megarl.report.run_data import RunData
from megarl.report.seeds import on_common_steps

_ENTROPY, _TARGET = "actor/old_entropy", "control/entropy_target"


def target_figure(groups: Sequence[Group]) -> LineFigure | None:
    """Every group's entropy, its target dotted in its colour; None where no run has a target."""
    lines: list[Line] = []
    any_target = False
    for group in groups:
        runs = [run for run in group.runs if _start(run) is not None]
        lines += group_lines(group, [(run, _entropy(run)) for run in runs])
        if steered := [_target(run) for run in runs if _TARGET in run]:
            steps, targets = on_common_steps(steered)
            any_target = True
            lines.append(
                Line(
                    label=f"{group.label}, target",
                    x=steps,
                    y=targets.mean(axis=0),
                    colour=group.colour,
                    group=group.index,
                    dash=2,
                    width=1.4,
                    guide=True,
                )
            )
    if not any_target:
        return None
    return LineFigure(
        key="entropy_target",
        title="Entropy and its target",
        subtitle="over that of the run's first step, of the weights after the steps; dotted: target for a step's end",
        x_title="steps done",
        y_title="share of the first step's",
        lines=tuple(lines),
        axis="data",
        min_span=0.2,
    )


def _start(run: RunData) -> float | None:
    """Entropy of the run's first step; None where it is not known, or 0."""
    steps, values = run.series(_ENTROPY)
    first = finite(values[steps == 1])
    return float(first[0]) if len(first) and first[0] > 0 else None


def _entropy(run: RunData) -> tuple[Values, Values]:
    steps, values = run.series(_ENTROPY)
    return steps - 1, values / (_start(run) or np.nan)


def _target(run: RunData) -> tuple[Values, Values]:
    steps, values = run.series(_TARGET)
    return steps, values / (_start(run) or np.nan)
