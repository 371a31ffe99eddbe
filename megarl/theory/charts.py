"""The charts of `megarl theory`, as Altair specifications; pure functions of the numbers in theory.json.

Entropy changes are drawn in millinats (10^-3 nats). A bound that is off (low 1.0, high inf) is labelled "off".
"""

import math
from collections.abc import Mapping
from typing import Any

import altair as alt

from megarl.report.colours import BLUE, GREY, ORANGE, SKY, VERMILION
from megarl.theory.sweep_charts import (
    HEIGHT,
    INK,
    MILLI,
    WIDTH,
    Rows,
    build_grid,
    build_samples,
    build_sweep,
    build_training,
    chart_title,
)


def build_theory_charts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every chart by key, in the order of the report; `training` is absent where that study was left out."""
    steps, sweep = results["steps"], results["sweep"]
    charts = {
        "theorem_1": build_scatter(steps, "Theorem 1", "policy gradient"),
        "theorem_2": build_scatter(steps, "Theorem 2", "natural gradient"),
        "remainder": build_remainder(steps["rows"]),
        "counterexamples": build_cases(results["counterexamples"]),
        "sweep_low": build_sweep(sweep["rows"], "low"),
        "sweep_high": build_sweep(sweep["rows"], "high"),
        "sweep_grid": build_grid(sweep["grid"]),
        "samples": build_samples(results["samples"]),
    }
    if results["training"]:
        charts["training"] = build_training(results["training"])
    return charts


def build_scatter(steps: Mapping[str, Any], theorem: str, update: str) -> Any:
    """One point per pair of policies, on the line where the prediction is exact."""
    points = [
        {"predicted": MILLI * point["predicted"], "exact": MILLI * point["exact"]}
        for point in steps["scatter"]
        if point["theorem"] == theorem
    ]
    values = [value for point in points for value in point.values()]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    line = [{"predicted": end, "exact": end} for end in (low - margin, high + margin)]
    marks = alt.Chart(alt.InlineData(values=points)).mark_circle(size=26, opacity=0.55, color=BLUE)
    guide = alt.Chart(alt.InlineData(values=line)).mark_line(color=VERMILION, strokeWidth=1.2)
    return (
        alt.layer(guide, marks)
        .encode(
            x=alt.X(
                "predicted:Q", title="predicted entropy change, millinats", scale=scale, axis=alt.Axis(tickCount=6)
            ),
            y=alt.Y("exact:Q", title="exact entropy change, millinats", scale=scale, axis=alt.Axis(tickCount=6)),
        )
        .properties(
            width=WIDTH,
            height=HEIGHT,
            title=chart_title(
                f"{theorem}: predicted against exact",
                f"one {update} step of learning rate {steps['scatter_learning_rate']:g}; {len(points)} random pairs; "
                "the line is equality",
            ),
        )
    )


def build_remainder(rows: Rows) -> Any:
    """|exact - predicted| against the learning rate, with the slopes 1 and 2 of the first and second order."""
    colours = {"Theorem 1": BLUE, "Theorem 2": VERMILION, "Theorem 1 averaged under π_old": GREY}
    names = {"under pi_old": "Theorem 1 averaged under π_old"}
    values = [
        {
            "rate": row["learning_rate"],
            "remainder": row["remainder"],
            "series": names.get(row["theorem"], row["theorem"]),
        }
        for row in rows
        if row["remainder"] > 0
    ]
    chart = alt.Chart(alt.InlineData(values=values)).encode(
        color=alt.Color("series:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())))
    )
    guides = [guide for name, slope in (("Theorem 1", 2), ("under pi_old", 1)) for guide in _guide(rows, name, slope)]
    return (
        alt.layer(*guides, chart.mark_line(strokeWidth=2), chart.mark_circle(size=42, opacity=1))
        .encode(
            x=alt.X(
                "rate:Q",
                title="learning rate, logarithmic",
                scale=alt.Scale(type="log", nice=False, padding=14),
                axis=alt.Axis(values=sorted({row["learning_rate"] for row in rows}), format="~g", labelOverlap=True),
            ),
            y=alt.Y(
                "remainder:Q",
                title="|exact − predicted|, nats, logarithmic",
                scale=alt.Scale(type="log", nice=True),
                axis=alt.Axis(format="~e", values=_powers(values)),
            ),
        )
        .properties(
            width=WIDTH,
            height=HEIGHT,
            title=chart_title(
                "What the first order leaves", "median over pairs; slope 2: the prediction is the whole first order"
            ),
        )
    )


def _powers(values: Rows) -> list[float]:
    """The powers of ten between the smallest and the largest remainder: the only grid lines that help."""
    remainders = [value["remainder"] for value in values] or [1.0]
    return [10.0**k for k in range(math.floor(math.log10(min(remainders))), math.ceil(math.log10(max(remainders))) + 1)]


def _guide(rows: Rows, theorem: str, slope: int) -> list[Any]:
    """A dashed line of this slope below the theorem's points, with its label."""
    chosen = [row for row in rows if row["theorem"] == theorem and row["remainder"] > 0]
    if len(chosen) < 2:
        return []
    first, last = chosen[0], chosen[-1]
    start = first["remainder"] / 2.2
    fall = (last["learning_rate"] / first["learning_rate"]) ** slope
    ends = [
        {"rate": first["learning_rate"], "remainder": start},
        {"rate": last["learning_rate"], "remainder": start * fall},
    ]
    # Where no other line is: the flat guide's label near its low end, the steep one's in the middle.
    share = 0.05 if slope == 1 else 0.5
    place = {key: ends[0][key] ** share * ends[1][key] ** (1 - share) for key in ends[0]}
    label = {**place, "label": f"slope {slope}"}
    line = alt.Chart(alt.InlineData(values=ends)).mark_line(color=INK, strokeDash=[5, 4], strokeWidth=1.1)
    text = alt.Chart(alt.InlineData(values=[label])).mark_text(
        color=INK, align="left", baseline="top", dx=8, dy=5, fontSize=11
    )
    return [line, text.encode(text="label:N")]


def build_cases(rows: Rows) -> Any:
    """Exact change as a bar, its prediction as a tick, for both updates."""
    panels: list[Any] = []
    for key, title in (("pg", "policy gradient (Theorem 1)"), ("ng", "natural gradient (Theorem 2)")):
        values = [
            {
                "case": row["name"],
                "exact": MILLI * row[f"{key}_exact"],
                "predicted": MILLI * row[f"{key}_predicted"],
                "sign": "entropy rises" if row[f"{key}_exact"] > 0 else "entropy falls",
            }
            for row in rows
        ]
        axis = alt.Axis(labels=not panels, ticks=False, labelLimit=200, labelPadding=8, domain=False, title=None)
        base = alt.Chart(alt.InlineData(values=values)).encode(y=alt.Y("case:N", sort=None, axis=axis))
        bars = base.mark_bar(height=18).encode(
            x=alt.X("exact:Q", title="entropy change, millinats", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "sign:N",
                scale=alt.Scale(domain=["entropy rises", "entropy falls"], range=[SKY, ORANGE]),
                legend=alt.Legend(offset=14),
            ),
        )
        ticks = base.mark_tick(color="black", thickness=2, size=24).encode(x="predicted:Q")
        panels.append(alt.layer(bars, ticks).properties(width=300, height=190, title=alt.Title(title, fontSize=12)))
    # The title the report shows is the figure's own, so the two panels together carry one.
    return alt.hconcat(*panels, spacing=24).properties(
        title=chart_title(
            "Signs are not universal",
            "which way a rule moves entropy depends on the token it acts on; bar: exact, tick: predicted",
        )
    )
