"""Of clipping.md: the first step alone, in which runs of a seed begin alike and differ in what is dropped."""

from collections.abc import Sequence

import numpy as np

from megarl.report.figure import AnyFigure, Cloud, ScatterFigure
from megarl.report.predicted import correlate
from results.clipping_claims import Judged, after_first, pair_name
from results.clipping_prediction import STEP_SCALE, agreement, coin_pairs, correlation_words, differences
from results.ran import table
from results.reading import Results
from results.words import estimate, listed, overall, verdict

_COLOURS = ("blue", "vermilion", "green", "purple", "orange")


def first_step_answer(judged: Judged) -> str:
    """One claim after one step, in a sentence; nothing where no run tells."""
    if not judged.differences:
        return ""
    told = [f"{pair_name(each)} {estimate(each.first)}" for each in judged.differences]
    words = [word for _, _, word in judged.terms]
    terms = [f"{clip} {value}" for clip, value, _ in judged.terms]
    seeds = max((each.first.n for each in judged.differences if each.first), default=0)
    return (
        f"In one step alone, on {judged.where} with {seeds} other seeds: **{overall(judged.after_first)}** "
        f"({listed(told)}); its first-order term: {overall(words)} ({listed(terms)}, 10⁻⁶ nats)."
    )


def first_step_table(judged: Sequence[Judged], found: Results) -> str:
    """A row per difference: H/H0 after the step, how many seeds agree, and what the budgets predicted."""
    rows = []
    for one in judged:
        sign = one.claim.sign
        for each in one.differences:
            predicted, measured = differences(found, each.setting, each.other, 1)
            agreeing = each.signs[0 if sign > 0 else 1]
            rows.append(
                [
                    f"({one.claim.letter}) {pair_name(each)}",
                    "+" if sign > 0 else "−",
                    f"{estimate(each.first)} {verdict(each.first, sign)}",
                    f"{agreeing} of {each.first.n if each.first else 0}",
                    estimate(measured, 4),
                    estimate(predicted, 2, STEP_SCALE),
                    agreement(predicted, measured),
                ]
            )
    heads = ["difference", "claimed", "H/H0 after the step", "seeds as claimed"]
    return table([*heads, "nats", "predicted, 10⁻⁶ nats", "signs"], rows)


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
