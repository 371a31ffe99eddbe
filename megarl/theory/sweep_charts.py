"""The charts of `megarl theory` over bounds, samples and trainings; see `charts`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from megarl.report.colours import BLUE, GREEN, ORANGE, SKY, VERMILION

Rows = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = 440, 280
MILLI = 1e3
INK = "#3C4043"
_CLIP_COLOURS = (BLUE, SKY, VERMILION, ORANGE, GREEN)


def bound_label(side: str, bound: float) -> str:
    """'0.2', or 'off'."""
    off = bound >= 1 if side == "low" else math.isinf(bound)
    return "off" if off else f"{bound:g}"


def clip_label(low: float, high: float) -> str:
    """'low 0.2, high off'; 'no clip'."""
    labels = bound_label("low", low), bound_label("high", high)
    return "no clip" if labels == ("off", "off") else f"low {labels[0]}, high {labels[1]}"


def build_sweep(rows: Rows, side: str) -> Any:
    """Mean entropy change against one bound, the other off: predicted line, exact points."""
    update = {"pg": "policy gradient", "ng": "natural gradient"}
    values = [
        {
            "bound": bound_label(side, row["bound"]),
            "predicted": MILLI * row[f"{key}_predicted"],
            "exact": MILLI * row[f"{key}_exact"],
            "series": name,
        }
        for row in rows
        if row["side"] == side
        for key, name in update.items()
    ]
    colours = alt.Scale(domain=list(update.values()), range=[BLUE, VERMILION])
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("bound:O", sort=None, title=f"{side} (the other bound off)", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("series:N", scale=colours),
    )
    y_title = "mean entropy change, millinats"
    return alt.layer(
        _zero_line(),
        base.mark_line(strokeWidth=2).encode(y=alt.Y("predicted:Q", title=y_title, axis=alt.Axis(tickCount=6))),
        base.mark_point(size=52, filled=True, opacity=1).encode(y="exact:Q"),
    ).properties(
        width=WIDTH,
        height=HEIGHT,
        title=chart_title(f"Clip-{side} alone", "one step on random pairs; line: first order, points: exact"),
    )


def build_grid(rows: Rows) -> Any:
    """Both bounds together: mean exact change of a policy-gradient step per cell, its prediction below."""
    values = [
        {
            "low": bound_label("low", row["low"]),
            "high": bound_label("high", row["high"]),
            "exact": MILLI * row["exact"],
            "label": _signed(MILLI * row["exact"]),
            "predicted": _signed(MILLI * row["predicted"]),
        }
        for row in rows
    ]
    largest = max(abs(value["exact"]) for value in values) or 1.0
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("high:O", sort=None, title="high", axis=alt.Axis(labelAngle=0, domain=False, ticks=False)),
        y=alt.Y("low:O", sort=None, title="low", axis=alt.Axis(domain=False, ticks=False)),
    )
    colour = alt.Color(
        "exact:Q",
        scale=alt.Scale(domain=[-largest, 0, largest], range=[ORANGE, "#FFFFFF", SKY], interpolate="rgb"),
        legend=alt.Legend(orient="right", title=None, gradientLength=200, format="+.2f"),
    )
    return alt.layer(
        base.mark_rect(stroke="white").encode(color=colour),
        base.mark_text(fontSize=11.5, dy=-6, fontWeight="bold", color=INK).encode(text="label:N"),
        base.mark_text(fontSize=10, dy=8, color="#5F6368").encode(text="predicted:N"),
    ).properties(
        width=WIDTH,
        height=max(HEIGHT, 38 * len({row["low"] for row in rows})),
        title=chart_title(
            "Both bounds together", "mean entropy change of a step, millinats; bold: exact, below: first order"
        ),
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def build_samples(rows: Rows) -> Any:
    """The slope measured from sampled groups with two standard errors, and the prediction."""
    values = [
        {
            "clip": clip_label(row["low"], row["high"]),
            "measured": MILLI * row["measured"],
            "from": MILLI * (row["measured"] - 2 * row["standard_error"]),
            "to": MILLI * (row["measured"] + 2 * row["standard_error"]),
            "predicted": MILLI * row["predicted"],
        }
        for row in rows
    ]
    axis = alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=200)
    base = alt.Chart(alt.InlineData(values=values)).encode(y=alt.Y("clip:N", sort=None, title=None, axis=axis))
    legend = alt.Scale(domain=["measured ± 2 standard errors", "predicted"], range=[BLUE, VERMILION])
    dots = base.transform_calculate(series="'measured ± 2 standard errors'").mark_circle(size=70, opacity=1)
    spans = base.mark_rule(color=BLUE, strokeWidth=2).encode(x=alt.X("from:Q"), x2="to:Q")
    ticks = base.transform_calculate(series="'predicted'").mark_tick(thickness=2.5, size=22, opacity=1)
    title = "entropy change per learning rate, millinats"
    return alt.layer(
        spans,
        dots.encode(x=alt.X("measured:Q", title=title), color=alt.Color("series:N", scale=legend)),
        ticks.encode(x="predicted:Q", color=alt.Color("series:N", scale=legend)),
    ).properties(
        width=WIDTH,
        height=max(HEIGHT, 34 * len(rows)),
        title=chart_title(
            "Sampled groups", "first-order slope with sampled actions, coin-flip rewards, group-mean baseline"
        ),
    )


def build_training(rows: Rows) -> Any:
    """Entropy with a clip minus that with its control, over a training; beside it the end with two standard errors."""
    labels = [clip_label(row["low"], row["high"]) for row in rows]
    lines = [
        {"rollout": index, "difference": clip - control, "clip": label}
        for row, label in zip(rows, labels, strict=True)
        for index, (clip, control) in enumerate(zip(row["curve"], row["control_curve"], strict=True))
    ]
    ends = [
        {
            "from": row["difference"] - 2 * row["standard_error"],
            "to": row["difference"] + 2 * row["standard_error"],
            "difference": row["difference"],
            "clip": label,
        }
        for row, label in zip(rows, labels, strict=True)
    ]
    palette = [_CLIP_COLOURS[index % len(_CLIP_COLOURS)] for index in range(len(labels))]
    colour = alt.Color("clip:N", scale=alt.Scale(domain=labels, range=palette), legend=alt.Legend(columns=3))
    extremes = [0.0, *(line["difference"] for line in lines), *(end[key] for end in ends for key in ("from", "to"))]
    y_scale = alt.Scale(domain=[min(extremes), max(extremes)], nice=6, zero=False)
    return alt.hconcat(
        _training_lines(lines, colour, y_scale), _training_ends(ends, labels, colour, y_scale), spacing=12
    ).properties(
        title=chart_title(
            "Whole trainings on coin-flip rewards",
            "entropy / initial entropy, mean over seeds; right: the last rollout with ± 2 standard errors",
        )
    )


def _training_lines(lines: Rows, colour: Any, y_scale: Any) -> Any:
    last = max(line["rollout"] for line in lines)
    x = alt.X(
        "rollout:Q",
        title="rollout",
        scale=alt.Scale(domain=[0, last or 1], nice=False),
        axis=alt.Axis(grid=False, values=list(range(0, last + 1, max(1, round(last / 5))))),
    )
    y = alt.Y("difference:Q", title="relative entropy, clip − control", scale=y_scale, axis=alt.Axis(tickCount=6))
    chart = alt.Chart(alt.InlineData(values=lines)).mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    return alt.layer(_zero_line(), chart).properties(width=0.8 * WIDTH, height=HEIGHT)


def _training_ends(ends: Rows, labels: Sequence[str], colour: Any, y_scale: Any) -> Any:
    """One place per clip, so that bars do not hide each other; the scale is that of the lines."""
    place = alt.X("clip:N", sort=list(labels), title="at the end", axis=alt.Axis(labels=False, ticks=False))
    base = alt.Chart(alt.InlineData(values=ends)).encode(x=place, color=colour)
    y_axis = alt.Axis(labels=False, ticks=False, domain=False, title=None, tickCount=6)
    bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("from:Q", scale=y_scale, axis=y_axis), y2="to:Q")
    dots = base.mark_circle(size=40, opacity=1).encode(y=alt.Y("difference:Q", scale=y_scale, axis=y_axis))
    return alt.layer(_zero_line(), bars, dots).properties(width=0.2 * WIDTH, height=HEIGHT)


def _zero_line() -> Any:
    return alt.Chart(alt.InlineData(values=[{"zero": 0.0}])).mark_rule(color="#9AA0A6").encode(y="zero:Q")


def chart_title(text: str, subtitle: str) -> Any:
    """The heading of a chart."""
    return alt.Title(text, subtitle=subtitle)
