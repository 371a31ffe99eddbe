"""FlexEC's schedules in tables and sentences; the numbers are those of `control_schedules`."""

from collections.abc import Sequence

import numpy as np

from results.control_answers import answers_table, told_apart
from results.control_schedules import (
    HEIGHTS,
    TRIALS,
    Judged,
    judge,
    noise_of,
    noise_of_constants,
    switches_of,
)
from results.control_words import config_of, evaluated_metrics, some
from results.curve_shapes import SWING, Answer, Found, OscillationFound, ShapeFound
from results.ran import table
from results.reading import Results, over_seeds
from results.words import estimate, listed, plain, signed


def compute(results: Results) -> dict[str, object]:
    """Values of the template's part."""
    names = [one.name for one in results.facts.settings if results.has(one.name)]
    judged = [found for name in names if (found := judge(results, name)) is not None]
    return {
        "swing": SWING,
        "shapes": _shapes_table(judged),
        "beside": _beside_table(results, judged),
        "answers": _answers(judged),
        "beside_answers": _beside_answers(results, judged),
        "oscillation": [_oscillation(results, one) for one in judged if isinstance(one.found, OscillationFound)],
        "noise": _noise(results, names),
        "accuracy": answers_table(results, names),
        "best": [told_apart(results, names, metric) for metric in evaluated_metrics(results)],
        "clipped": _clipped(results, names),
    }


def _shapes_table(judged: Sequence[Judged]) -> str:
    rows = []
    for one in judged:
        match one.found:
            case ShapeFound() as found:
                slopes = ", ".join(estimate(slope, 2) for slope in found.slopes)
                lines = f"{found.explained:.2f} ({found.explained_straight:.2f})"
                rows.append([one.setting, one.intended, slopes, lines, found.answer])
            case OscillationFound() as found:
                turns = f"turns {listed(found.turns)}; envelope {estimate(found.envelope, 2)}"
                rows.append([one.setting, one.intended, turns, "", found.answer])
            case None:
                rows.append([one.setting, one.intended, "a phase has too few steps", "", "open"])
    return table(["setting", "is to", "slope by phase, H/H0 per run", "explained (by one line)", "does it"], rows)


def _beside_table(results: Results, judged: Sequence[Judged]) -> str:
    rows = [
        [
            f"{one.setting} less {results.control_of(one.setting)}",
            ", ".join(estimate(slope, 2) for slope in one.beside.slopes),
            one.beside.answer,
        ]
        for one in judged
        if one.beside is not None
    ]
    return table(["difference", "slope by phase, H/H0 per run", "goes as intended"], rows) if rows else ""


def _answers(judged: Sequence[Judged]) -> str:
    by_answer: dict[Answer, list[str]] = {"yes": [], "no": [], "open": []}
    for one in judged:
        by_answer[one.found.answer if one.found else "open"].append(one.setting)
    yes, no, undecided = by_answer["yes"], by_answer["no"], by_answer["open"]
    parts = [
        f"{some(yes, 'has', 'have')} the intended shape" if yes else "no schedule is found to have its shape",
        f"{some(no, 'has', 'have')} not" if no else "",
        f"of {listed(undecided)} it is open" if undecided else "",
    ]
    return "By this rule " + "; ".join(part for part in parts if part) + ". How often it errs is below."


def _beside_answers(results: Results, judged: Sequence[Judged]) -> str:
    found = [one for one in judged if one.beside is not None]
    if not found:
        return ""
    yes = [one.setting for one in found if one.beside and one.beside.answer == "yes"]
    controls = listed(sorted({str(results.control_of(one.setting)) for one in found}))
    if yes:
        return f"Less {controls}, seed by seed, {some(yes, 'goes', 'go')} the intended way in every phase."
    names = listed([one.setting for one in found])
    return f"Less {controls}, seed by seed, none of {names} is found to go the intended way in every phase."


def _oscillation(results: Results, one: Judged) -> str:
    """Whether it ever switched, which its shape depends on."""
    assert isinstance(one.found, OscillationFound)
    floor = float(config_of(results, one.setting)["objective.clip.floor_ratio"])
    runs = results.runs[one.setting].values()
    lowest = [float(np.nanmin(run.series("actor/entropy_over_start")[1])) for run in runs]
    switches = switches_of(results, one.setting)
    waves = f"By the rule above its runs turn {listed(one.found.turns)} times."
    if not any(switches):
        return (
            f"The schedule of {one.setting} never switched: its floor is {floor:g} of the starting entropy, and the "
            f"lowest value of any of its runs is {min(lowest):.2f}. So it is its lowering half throughout. {waves}"
        )
    return (
        f"The schedule of {one.setting} switched {listed(switches)} times in its runs; its floor is {floor:g} of the "
        f"starting entropy, and the runs' lowest values are {listed([plain(value, 2) for value in lowest])}. {waves}"
    )


def _noise(results: Results, names: Sequence[str]) -> str:
    """How often the rule finds a shape where there is none, with as many seeds and steps and as much noise."""
    seeds = max(len(results.runs[name]) for name in names)
    constants = noise_of_constants(results, names)
    if seeds < 2:
        return "Of one seed every answer is open, so it cannot."
    if constants is None:
        return "It is not known here: there is no setting with constant bounds whose noise could be taken."
    deviation, trend = constants
    rows = [
        [text, *(_yes_no(found) for found in (one.wandering, one.scattered, *dict(one.with_shape).values()))]
        for text, one in noise_of(results, names, seeds=seeds, deviation=deviation, trend=trend)
    ]
    if not rows:
        return "The runs are too short for any of the shapes."
    heads = ["shape, yes / no in % of", "walks", "noise", *(f"height {height:g}" for height in HEIGHTS)]
    return (
        f"Measured on {TRIALS:,} sets of {seeds} made-up curves each, as long as these runs: random walks and "
        f"independent values, with the deviation that a step's change of H/H0 has under constant bounds here "
        f"({deviation:.3f}); then the shape itself, of that height in units of H0, on the walks. Under all of them "
        f"lies what constant bounds do here in a run, {signed(trend, 2)} in a straight line. Of the first two columns "
        "each yes is false, of the others each no: that is how high a shape must be to be found, and not to be denied. "
        "For the differences above the errors were not measured."
        f"\n\n{table(heads, rows)}"
    )


def _yes_no(found: Found) -> str:
    return f"{100 * found.yes:.1f} / {100 * found.no:.1f}"


def _clipped(results: Results, names: Sequence[str]) -> str:
    """How many tokens the bounds reach at all."""
    told = []
    for side in ("low", "high"):
        shares = [one.value for name in names if (one := over_seeds(results.measure(name, f"clip_{side}_mean")))]
        if shares:
            told.append(f"clip-{side} drops {100 * min(shares):.2f} to {100 * max(shares):.2f} %")
    return f"By setting {listed(told)} of the tokens." if told else "How many tokens are clipped was not logged."
