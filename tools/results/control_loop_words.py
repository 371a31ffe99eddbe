"""Closed-loop clipping in tables and sentences; the numbers are those of `control_loop`."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from megarl.ablation.seeds import SeedMean
from results.control_answers import answers_table, told_apart
from results.control_loop import Target, find_targets, held, is_loop, reach
from results.control_loop_predictions import prediction_said, prediction_table
from results.control_words import evaluated_metrics, percent, some
from results.holding import NEAR, Held, Reach, settling_steps
from results.ran import table
from results.reading import Results, difference, over_seeds
from results.words import estimate, listed, mean, plain, signed

_HELD = 0.9
"""Share of the steps at the target with which a run is said to hold it."""
_RIGHT = 1e-3
"""Share of the budget's size up to which a prediction of it counts as right; stored numbers are rounded to 1e-4."""
_MOST = 0.5
"""Share of the updates from which something is said to be the rule."""
_ONE_SIDED = 0.5
"""Mean error, of the RMS error, from which an entropy that is to one side in every seed is said to be there."""


def compute(results: Results) -> dict[str, object]:
    """Values of the template's part of one ablation."""
    names = [one.name for one in results.facts.settings if results.has(one.name)]
    targets = find_targets(results)
    loops = [name for target in targets for name in target.loops]
    total = max((len(target.share_K) for target in targets), default=1)
    metrics = evaluated_metrics(results)
    return {
        "settled": settling_steps(total),
        "targets": [
            {
                "label": one.label,
                "table": _held_table(results, one),
                "said": _held_said(results, one),
                "others": _others_said(results, one),
            }
            for one in targets
        ],
        "answers": answers_table(results, names) if metrics else "",
        "answers_said": [told_apart(results, names, metric) for metric in metrics],
        "reach": _reach_table(results, loops),
        "reach_said": [_reach_said(results, name) for name in loops],
        "pass_said": _pass_said(results, loops),
        "predictions": prediction_table(results, loops),
        "predictions_said": prediction_said(results, loops),
        "bonus": [text for name in results.runs if (text := _bonus(results, name))],
    }


def rms_of(results: Results) -> dict[str, SeedMean]:
    """Loop -> RMS error against its own target, over its seeds."""
    found = {}
    for target in find_targets(results):
        for name in target.loops:
            if (one := over_seeds({seed: run.rms for seed, run in held(results, name, target).items()})) is not None:
                found[name] = one
    return found


def _held_table(results: Results, target: Target) -> str:
    control = _control(results, target)
    heads = ["setting", "what", "RMS error %", "less control's", "largest %", "mean %", "at target", "reached"]
    rows = []
    for name in target.settings:
        runs = held(results, name, target)
        about = results.stored.setting(name).about.removeprefix("closed loop: ")
        beside = "control" if name == control else estimate(_rms_difference(results, name, target), 1, 100)
        rows.append(
            [
                name,
                about,
                mean(_over(runs, lambda one: one.rms), 1, 100),
                beside,
                plain(100 * max(one.largest for one in runs.values()), 0),
                estimate(_over(runs, lambda one: one.bias), 1, 100),
                percent(float(np.mean([one.share_near for one in runs.values()]))),
                ", ".join(str(one.reached) if one.reached else "no" for one in runs.values()),
            ]
        )
    return table(heads, rows)


def _control(results: Results, target: Target) -> str | None:
    control = results.facts.control
    return control if control in target.settings else None


def _over(runs: dict[int, Held], number: Callable[[Held], float]) -> SeedMean | None:
    return over_seeds({seed: number(one) for seed, one in runs.items()})


def _rms_difference(results: Results, setting: str, target: Target) -> SeedMean | None:
    control = _control(results, target)
    if control is None:
        return None
    first, second = (
        {seed: one.rms for seed, one in held(results, name, target).items()} for name in (setting, control)
    )
    return difference(first, second)


def _has_one_seed(found: Iterable[SeedMean | None]) -> bool:
    """Whether all that are there are of one, which has no interval."""
    return all(one.n == 1 for one in found if one is not None)


def _held_said(results: Results, target: Target) -> str:
    """Which hold it, which is there most often, and which are nearer to it than the control."""
    near = {name: [one.share_near for one in held(results, name, target).values()] for name in target.settings}
    holding = [name for name, shares in near.items() if min(shares) >= _HELD]
    parts = [
        f"{some(holding, 'keeps', 'keep')} within {NEAR:.0%} of it in at least {_HELD:.0%} of the steps, in every seed"
        if holding
        else f"No setting keeps within {NEAR:.0%} of it in {_HELD:.0%} of the steps in every seed"
    ]
    often = {name: float(np.mean(shares)) for name, shares in near.items()}
    first, *_ = sorted(often, key=lambda name: -often[name])
    parts.append(f"{first} is there most often, in {percent(often[first])} of the steps")
    control = _control(results, target)
    found = {name: _rms_difference(results, name, target) for name in target.settings if name != control}
    nearer = [name for name, one in found.items() if one and one.excludes_zero and one.value < 0]
    further = [name for name, one in found.items() if one and one.excludes_zero and one.value > 0]
    if control is not None:
        parts.append(f"{some(nearer, 'is', 'are')} nearer to it than {control}" if nearer else "")
        parts.append(f"{some(further, 'is', 'are')} further from it" if further else "")
        open_ones = [name for name in found if name not in (*nearer, *further)]
        which = "there is no interval, of one seed" if _has_one_seed(found.values()) else "the interval has 0"
        parts.append(f"of {listed(open_ones)} against {control} {which}" if open_ones else "")
    return "; ".join(part for part in parts if part).replace("%", " %") + "."


def _others_said(results: Results, target: Target) -> list[str]:
    """Of each loop, what it is nearer to the target than, of the settings that have no loop."""
    others = [name for name in target.settings if name not in target.loops]
    errors = {name: {seed: one.rms for seed, one in held(results, name, target).items()} for name in target.settings}
    said = []
    for loop in target.loops if len(others) > 1 else ():
        found = {name: difference(errors[loop], errors[name]) for name in others}
        nearer = [name for name, one in found.items() if one and one.excludes_zero and one.value < 0]
        further = [name for name, one in found.items() if one and one.excludes_zero and one.value > 0]
        rest = [name for name in others if name not in (*nearer, *further)]
        always = [
            name
            for name in rest
            if all(errors[loop][seed] < error for seed, error in errors[name].items() if seed in errors[loop])
        ]
        parts = [f"nearer to it than {listed(nearer)} by an interval that excludes 0" if nearer else ""]
        parts.append(f"further from it than {listed(further)}" if further else "")
        which = "the one seed" if _has_one_seed(found.values()) else "every seed, with 0 in the interval"
        parts.append(f"nearer than {listed(always)} in {which}" if always else "")
        left = [name for name in rest if name not in always]
        parts.append(f"not told apart from {listed(left)}" if left else "")
        said.append(f"{loop} is {'; '.join(part for part in parts if part)}.")
    return said


def _reach_table(results: Results, loops: Sequence[str]) -> str:
    rows = []
    for name in loops:
        one = reach(results, name)
        shares = (one.at_raising_end, one.at_lowering_end, one.short_of_raise, one.short_of_fall)
        rows.append([name, f"{one.num_updates:,}", *map(percent, shares), signed(one.shortfall, 2)])
    heads = ["loop", "updates", "raising end", "lowering end", "too little", "too much", "wanted less predicted"]
    return table(heads, rows) if rows else ""


def _reach_said(results: Results, setting: str) -> str:
    """Why a loop misses, where it does."""
    one: Reach = reach(results, setting)
    target = next(found for found in find_targets(results) if setting in found.loops)
    runs = held(results, setting, target).values()
    bias_S, rms_S = (np.array(found) for found in zip(*((run.bias, run.rms) for run in runs), strict=True))
    bias = float(bias_S.mean())
    one_sided = abs(bias) >= _ONE_SIDED * rms_S.mean() and len(set(np.sign(bias_S))) == 1
    ends = percent(one.at_raising_end + one.at_lowering_end)
    shares = (
        f"{percent(one.short_of_raise)} of its updates asked for more than any place of its knob gives, "
        f"{percent(one.short_of_fall)} for less; {ends} had the bounds at an end of their range"
    )
    if min(run.share_near for run in runs) >= _HELD:
        return f"{setting} holds its target. {shares}."
    if one_sided and (one.short_of_raise if bias < 0 else one.short_of_fall) >= _MOST:
        return (
            f"{setting} misses its target for want of reach: in every seed the entropy is on average "
            f"{'below' if bias < 0 else 'above'} it, and {shares}. The tokens that would have to go may lie within "
            "even the tightest bounds, or on the side that is loose then."
        )
    if one.short_of_raise + one.short_of_fall >= _MOST:
        return (
            f"{setting} misses its target to both sides: {shares}. It asks for all that there is, now up, now down, "
            "and the entropy swings."
        )
    return (
        f"{setting} misses its target within its reach: {shares}. What it asked for it mostly got, to first order, and "
        "the entropy did something else, or did it too late."
    )


def _pass_said(results: Results, loops: Sequence[str]) -> str:
    """Whether the prediction of the budget itself is right."""
    if not loops:
        return ""
    differs = max(reach(results, name).pass_differs for name in loops)
    most = f"at most {differs:.2g}" if differs >= 1e-4 else "less than 0.0001"
    text = f"What an update's own pass found of the budget is off the prediction by {most} of its size"
    if differs <= _RIGHT:
        return (
            f"{text}: the prediction is right about the budget. What is left is what the budget does not know: the "
            "optimizer, the weights that all tokens share, and the second order."
        )
    return f"{text}, so a part of what follows is the prediction's own error."


def _bonus(results: Results, setting: str) -> str:
    """What an adaptive coefficient did."""
    runs = [run for run in results.runs[setting].values() if "control/entropy_coefficient" in run]
    if not runs or is_loop(results, setting):
        return ""
    values = [run.series("control/entropy_coefficient")[1] for run in runs]
    acted = sum(int((one > 0).sum()) for one in values)
    steps = sum(len(one) for one in values)
    return (
        f"The bonus of {setting} acted in {acted} of {steps} steps, with a coefficient of at most "
        f"{max(float(np.nanmax(one)) for one in values):.3g}."
    )
