"""Of clipping.md: the first step alone, in which runs of a seed begin alike and differ in what is dropped."""

from collections.abc import Sequence

import numpy as np

from megarl.report.figure import AnyFigure, Cloud, ScatterFigure
from megarl.report.predicted import correlate
from results.clipping_claims import Judged, after_first, pair_name
from results.clipping_prediction import STEP_SCALE, agreement, coin_pairs, correlation_words, differences
from results.ran import table
from results.reading import Results, over_seeds
from results.words import estimate, listed, overall, plain, verdict

_COLOURS = ("blue", "vermilion", "green", "purple", "orange")


def first_step_answer(judged: Judged) -> str:
    """One claim after one step, in a sentence; nothing where no run tells."""
    if not judged.differences:
        return ""
    told = [f"{pair_name(each)} {estimate(each.first)}" for each in judged.differences]
    seeds = max((each.first.n for each in judged.differences if each.first), default=0)
    return (
        f"In one step alone, on {judged.where} with {seeds} other seeds: **{overall(judged.after_first)}** "
        f"({listed(told)}); its first-order term: {judged.first_order('10⁻⁶ nats')}."
    )


def first_step_table(judged: Sequence[Judged], found: Results) -> str:
    """A row per difference: H/H0 after the step, how many seeds agree, and what the budgets predicted."""
    rows = []
    for one in judged:
        sign = one.claim.sign
        for each in one.differences:
            predicted, measured = differences(found, each.setting, each.other, 1)
            agreeing, against = each.signs if sign > 0 else each.signs[::-1]
            equal = (each.first.n if each.first else 0) - agreeing - against
            rows.append(
                [
                    f"({one.claim.letter}) {pair_name(each)}",
                    "+" if sign > 0 else "−",
                    f"{estimate(each.first)} {verdict(each.first, sign)}",
                    f"{agreeing}, {against} against{f', {equal} equal' if equal else ''}",
                    estimate(measured, 4),
                    estimate(predicted, 2, STEP_SCALE),
                    agreement(predicted, measured),
                ]
            )
    heads = ["difference", "claimed", "H/H0 after the step", "seeds as claimed"]
    return table([*heads, "nats", "predicted, 10⁻⁶ nats", "signs"], rows)


def without_farthest_words(judged: Sequence[Judged], found: Results) -> str:
    """Each difference without the seed that is farthest from the mean: chosen afterwards, so no verdict."""
    told = []
    for one in (each for claim in judged for each in claim.differences):
        ours, theirs = after_first(found, one.setting), after_first(found, one.other)
        less = {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}
        if len(less) > 2:
            middle = sum(less.values()) / len(less)
            del less[max(less, key=lambda seed: abs(less[seed] - middle))]
            told.append(f"{pair_name(one)} {estimate(over_seeds(less))}")
    return f"Without the seed that is farthest from the others, chosen afterwards: {listed(told)}." if told else ""


def level_words(found: Results, clips: Sequence[str]) -> str:
    """Where the entropy itself is after the step, and how much larger measured differences are than predicted ones."""
    levels = [over_seeds(after_first(found, name)) for name in found.runs if found.has(name)]
    values = [one.value for one in levels if one is not None]
    ratios = []
    for clip in clips:
        predicted, measured = differences(found, clip, f"{clip}-coin", 1)
        if predicted is not None and measured is not None and predicted.excludes_zero and measured.excludes_zero:
            ratios.append(abs(measured.value / predicted.value))
    words = (
        f"All of these are differences: H/H0 itself is {plain(min(values), 2)} to {plain(max(values), 2)} by setting."
    )
    if ratios:
        spread = " to ".join(dict.fromkeys(f"{float(f'{each:.2g}'):,.0f}" for each in (min(ratios), max(ratios))))
        words += f" Where both are decided, the measured is some {spread} times the predicted: a sign, and no size."
    return words


def first_step_words(found: Results, clips: Sequence[str]) -> str:
    """How the predicted differences go with the measured ones."""
    pairs = coin_pairs(found, clips, 1)
    return (
        f"Over the {len(pairs)} pairs of a clip's run and its coin's, each less its clip's mean, the predicted and the "
        f"measured difference have a correlation of {correlation_words(pairs)}."
    )


def first_step_figure(found: Results, clips: Sequence[str]) -> AnyFigure:
    """A point per seed: what the step changes of the entropy under a clip, over that under its coin."""
    clouds = []
    for clip, colour in zip(clips, _COLOURS, strict=False):
        ours, coin = after_first(found, clip), after_first(found, f"{clip}-coin")
        seeds = sorted(ours.keys() & coin.keys())
        x, y = (np.array([100 * (each[seed] - 1) for seed in seeds]) for each in (coin, ours))
        below = sum(ours[seed] < coin[seed] for seed in seeds)
        clouds.append(
            Cloud(
                label=f"{clip}: lower than its coin in {below} of {len(seeds)} seeds",
                x=x,
                y=y,
                colour=colour,
                correlation=correlate(x, y),
                num_points=len(seeds),
            )
        )
    return ScatterFigure(
        key="first_step",
        title="What one step does to the entropy, with a clip and with its coin",
        subtitle="change of H, % of H0; a point per seed; on the line a clip does what its coin does",
        x_title="with the coin, %",
        y_title="with the clip, %",
        clouds=tuple(clouds),
    )
