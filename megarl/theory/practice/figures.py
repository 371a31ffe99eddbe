"""Figures of `numbers`, for the page and for documents."""

from collections.abc import Sequence

import numpy as np

from megarl.ablation.seeds import SeedMean
from megarl.report.colours import CYCLE, DASHES
from megarl.report.figure import Line, LineFigure
from megarl.theory.practice.equal_entropy import evaluation_metrics, has_series
from megarl.theory.practice.estimates import of_ratio
from megarl.theory.practice.numbers import ALL, Practice
from megarl.theory.practice.reading import ENTROPY_AFTER
from megarl.theory.practice.tables import SET_OF
from megarl.theory.practice.tokens import CLASSES
from megarl.theory.practice.updates import SIDES

MOST_SETTINGS = 8
"""Lines of one figure: of more settings the first ones."""
_LOOKS = {"low": "blue", "high": "vermilion"}


def build_practice_figures(practice: Practice) -> list[LineFigure]:
    """Those that the runs have numbers for."""
    made = [
        *(class_figure(practice, kind) for kind in ("surprisal", "quintile", "position")),
        within_figure(practice),
        *(growth_figure(practice, name) for name in ("correlation", "sign")),
        *entropy_figures(practice),
    ]
    return [figure for figure in made if figure is not None]


def class_figure(practice: Practice, kind: str) -> LineFigure | None:
    """Share of each set's tokens with N - Q < 0, and of the classes' tokens that are in the set."""
    setting = ALL if len(practice.settings) > 1 else practice.settings[0]
    lines = []
    for side in SIDES:
        for name, above, below, dash in (("N − Q < 0", "negative", "inside", 0), ("in the set", "inside", "tokens", 1)):
            found = {
                index + 1: one
                for index in range(len(CLASSES[kind]))
                if (one := of_ratio(practice, setting, f"{side}|{kind}|{index}", above, below)) is not None
            }
            if found:
                lines.append(_line(f"{SET_OF[side]}: {name}", found, _LOOKS[side], dash=dash, scale=100))
    if not lines:
        return None
    told = "; ".join(f"{index}: {name}" for index, name in enumerate(CLASSES[kind], start=1) if index <= _last(lines))
    titles = {"surprisal": "−log p, nats", "quintile": "fifth by entropy", "position": "position in the response"}
    return LineFigure(
        key=f"negative_by_{kind}",
        title=f"Where the sign is negative, by {titles[kind].split(',')[0]}",
        subtitle=f"% of the set's tokens with N − Q < 0, and of all tokens in the set; {setting}. Classes are {told}",
        x_title=f"class of {titles[kind]}",
        y_title="%",
        lines=tuple(lines),
    )


def _last(lines: Sequence[Line]) -> float:
    return max(float(line.x.max()) for line in lines)


def _line(
    label: str, found: dict[int, SeedMean], colour: str, *, dash: int = 0, scale: float = 1.0, group: int | None = None
) -> Line:
    """With a band where there are intervals."""
    y = np.array([scale * one.value for one in found.values()])
    half = np.array([np.nan if one.half_width is None else scale * one.half_width for one in found.values()])
    return Line(
        label=label,
        x=np.array([*found], dtype=np.float64),
        y=y,
        low=y - half,
        high=y + half,
        colour=colour,
        dash=dash,
        group=group,
    )


def within_figure(practice: Practice) -> LineFigure | None:
    """The entropy's way within a step, and the prediction's with the slope that fits it best."""
    lines = []
    for index, setting in enumerate(practice.settings[:MOST_SETTINGS]):
        ks = sorted({int(key) for key in practice.keys("curve")})
        curves = [
            {k: one for k in ks if (one := practice.estimate(setting, "curve", str(k), name)) is not None}
            for name in ("measured", "plain")
        ]
        if len(curves[0]) < 2:
            continue
        colour = CYCLE[index % len(CYCLE)]
        m, p = (np.array([one.value for one in curve.values()]) for curve in curves)
        slope = float(p @ m / (p @ p)) if float(p @ p) > 0 else 0.0
        x = np.array([*curves[0]], dtype=np.float64)
        lines += [
            Line(label=f"{setting}, measured", x=x, y=1e3 * m, colour=colour, group=index),
            Line(
                label=f"{setting}, predicted × {slope:.3g}", x=x, y=1e3 * slope * p, colour=colour, dash=2, group=index
            ),
        ]
    if not lines:
        return None
    return LineFigure(
        key="within_a_step",
        title="The entropy within a step, and what its budgets predict",
        subtitle="mean over steps and runs, on the same tokens; the predictions have a factor each"
        + _left_out(practice),
        x_title="updates made",
        y_title="entropy change, millinats",
        lines=tuple(lines),
        axis="data",
    )


def _left_out(practice: Practice) -> str:
    number = len(practice.settings)
    return f"; the first {MOST_SETTINGS} of {number} settings" if number > MOST_SETTINGS else ""


def growth_figure(practice: Practice, name: str) -> LineFigure | None:
    """Agreement by the number of updates made."""
    lines = []
    for index, setting in enumerate(practice.settings[:MOST_SETTINGS]):
        found: dict[int, SeedMean] = {}
        for key in practice.keys("prediction"):
            grain, group, which = key.split("|")
            one = practice.estimate(setting, "prediction", key, name)
            if grain == "since the step began" and which == "plain" and group != "all" and one is not None:
                found[int(group.split("-")[0])] = one
        if found:
            colour, dash = CYCLE[index % len(CYCLE)], index % len(DASHES)
            lines.append(
                _line(
                    setting,
                    dict(sorted(found.items())),
                    colour,
                    dash=dash,
                    scale=100 if name == "sign" else 1,
                    group=index,
                )
            )
    if not lines:
        return None
    titles = {"correlation": ("Correlation of prediction and measurement", ""), "sign": ("Signs that agree", "%")}
    title, unit = titles[name]
    return LineFigure(
        key=f"prediction_{name}",
        title=title,
        subtitle="of the entropy change since the step began with step size × budget, by updates made; a point holds "
        "as many again" + _left_out(practice),
        x_title="updates made, from",
        y_title=unit,
        lines=tuple(lines),
        axis="data",
        x_axis="log",
    )


def entropy_figures(practice: Practice) -> list[LineFigure]:
    """What was evaluated, or rewarded, over the entropy: settings meet where their entropies are equal."""
    if len(practice.settings) < 2:
        return []
    rewards = has_series(practice, ["reward/mean"])
    figures = (_over_entropy(practice, metric) for metric in (*evaluation_metrics(practice), *rewards))
    return [figure for figure in figures if figure is not None]


def _over_entropy(practice: Practice, metric: str) -> LineFigure | None:
    of_entropy = ENTROPY_AFTER if metric.startswith("eval/") else "actor/old_entropy"
    starts = [run.get("series", "1", "actor/old_entropy") for run in practice.runs]
    start = float(np.nanmean(starts)) if np.isfinite(starts).any() else np.nan
    lines = []
    for index, setting in enumerate(practice.settings[:MOST_SETTINGS]):
        points = []
        for step in sorted({int(key) for key in practice.keys("series")}):
            pair = [practice.estimate(setting, "series", str(step), name) for name in (of_entropy, metric)]
            if pair[0] is not None and pair[1] is not None:
                points.append((100 * pair[0].value / start, pair[1].value))
        if points:
            x, y = np.array(points, dtype=np.float64).T
            dash = index % len(DASHES)
            lines.append(Line(label=setting, x=x, y=y, colour=CYCLE[index % len(CYCLE)], dash=dash, group=index))
    if not lines or not np.isfinite(start):
        return None
    name = metric.removeprefix("eval/")
    return LineFigure(
        key=f"entropy_{name.replace('/', '_').replace('@', '_at_')}",
        title=f"{name} over the entropy",
        subtitle="a line goes through a setting's steps, means over its runs" + _left_out(practice),
        x_title="entropy, % of the start's",
        y_title=name,
        lines=tuple(lines),
        axis="data",
    )
