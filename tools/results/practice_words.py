"""Sentences of docs/results/theory-in-practice.md: each says what the numbers decide, and no more."""

import math
import re
from collections.abc import Sequence

from megarl.ablation.seeds import LEVEL, SeedMean, paired_difference
from megarl.theory.practice.equal_entropy import choose_levels, common_range, difference_at, evaluation_metrics
from megarl.theory.practice.estimates import change_of, of_ratio
from megarl.theory.practice.numbers import ACTING, ALL, IDLE, Practice
from megarl.theory.practice.tokens import CLASSES
from megarl.theory.practice.updates import SIDES
from megarl.theory.tables import TheoryTable
from results.ran import table
from results.words import MINUS, estimate, listed, mean, numbered, plain

SETS = {"low": "X", "high": "Y"}
_NEGATIVE = re.compile(r"(^|[ (])-(?=\d)")


def markdown(found: TheoryTable, *, drop: Sequence[str] = ()) -> str:
    """A table of `megarl theory` without some columns."""
    heads = [head.removeprefix("<") for head in found.columns]
    kept = [index for index, head in enumerate(heads) if head not in drop]
    rows = [[_cell(row[index]) for index in kept] for row in found.rows]
    return table([heads[index] for index in kept], rows)


def _cell(text: str) -> str:
    return "–" if text == "-" else _NEGATIVE.sub(rf"\1{MINUS}", text)


def clipping_group(practice: Practice) -> str:
    """Whom the theorems are about: the runs that clip, where some do not; else all."""
    return ACTING if ACTING in practice.groups else ALL


def negative_updates(practice: Practice, side: str, group: str) -> tuple[int, int]:
    """(updates with the sign below 0, of all that have a token in the set), over the group's runs."""
    runs = [run for run in practice.runs if run.setting in practice.members(group)]
    of = [(run.get("sign", side, "updates"), run.get("sign", side, "negative")) for run in runs]
    known = [(count, share) for count, share in of if math.isfinite(count)]
    return round(sum(count * share for count, share in known)), round(sum(count for count, _ in known))


def sign_words(practice: Practice) -> list[str]:
    """By update: how often, and what the entropy does then; of the runs that clip, then of those that do not."""
    lines, group = [], clipping_group(practice)
    for side in SIDES:
        negative, updates = negative_updates(practice, side, group)
        if not updates:
            continue
        share = practice.estimate(group, "sign", side, "negative")
        text = (
            f"E[Q] {MINUS} E[Q|{SETS[side]}] was below 0 in {negative:,} of {updates:,} updates "
            f"({mean(share, 1, 100)} % of a seed's)"
        )
        seen = "which it never is in the paper's figure 1" if negative else "as in the paper's figure 1"
        lines.append(
            f"{text}, {seen}. {_around(practice, side, group)}{_by_step(practice, side, group)}{_idle(practice, side)}"
        )
    return lines


def _idle(practice: Practice, side: str) -> str:
    """What the same numbers are where no bound acts: that much is not the clip's."""
    share = practice.estimate(IDLE, "sign", side, "negative")
    if IDLE not in practice.groups or share is None:
        return ""
    found = practice.estimate(IDLE, "sign", side, "change_difference")
    around = f"; around them {estimate(found, 1, 1000)} millinats" if found else ""
    text = f" Where a coin drops tokens in the bounds' place it was below 0 in {mean(share, 1, 100)} %{around}."
    return text + _by_step(practice, side, IDLE)


def _around(practice: Practice, side: str, group: str) -> str:
    found = practice.estimate(group, "sign", side, "change_difference")
    if found is None:
        return "No run has both kinds of updates at the same place in a step, so nothing is said of what follows."
    text = f"{estimate(found, 1, 1000)} millinats between updates of the same place in a step"
    if not found.excludes_zero:
        return f"The entropy changed around them no differently than around others, as far as the seeds tell: {text}."
    return f"Around them the entropy {'rose' if found.value > 0 else 'fell'} against what it did around others: {text}."


def _by_step(practice: Practice, side: str, group: str) -> str:
    """Of whole steps."""
    share, found = (practice.estimate(group, "sign", side, name) for name in ("steps_negative", "step_difference"))
    if share is None:
        return ""
    text = f" Over whole steps it was below 0 in {mean(share, 1, 100)} %"
    return (
        f"{text}; around them the entropy changed by {estimate(found, 1, 1000)} millinats more."
        if found
        else f"{text}."
    )


def coin_words(practice: Practice) -> str:
    """The difference around negative updates against that in the runs where a coin clips: what of it is the clip's."""
    told = []
    for side in SIDES:
        for setting in practice.settings:
            coin = f"{setting}-coin"
            if coin not in practice.settings:
                continue
            found = practice.difference(setting, coin, "sign", side, "change_difference")
            if found is not None:
                told.append(f"{setting}, {SETS[side]}: {estimate(found, 1, 1000)}")
    if not told:
        return ""
    return (
        "In a coin's run the set is that of bounds that do not act. Less the coin's, the difference around negative "
        f"updates is, in millinats: {'; '.join(told)}. What is not bold may be the trained tokens' doing and not the "
        f"clip's. Were there no difference in any, one or more of {len(told)} would be bold in "
        f"{100 * (1 - LEVEL ** len(told)):.0f} % of cases."
    )


def token_words(practice: Practice) -> list[str]:
    """By token: how many, where, and what their positions' entropy has done."""
    lines, group = [], clipping_group(practice)
    for side in SIDES:
        key = f"{side}|all|0"
        share = of_ratio(practice, group, key, "negative", "inside")
        if share is None:
            continue
        where = [
            name
            for index, name in enumerate(CLASSES["surprisal"])
            if (one := of_ratio(practice, group, f"{side}|surprisal|{index}", "negative", "inside")) and one.value > 0.5
        ]
        text = f"Of {SETS[side]}'s tokens {mean(share, 1, 100)} % have N {MINUS} Q < 0"
        text += f"; they are the majority where {MINUS}log p is {listed(where, 'or')} nats. " if where else ". "
        lines.append(text + _own_change(practice, side, key, group))
    return lines


def _own_change(practice: Practice, side: str, key: str, group: str) -> str:
    own, others = (change_of(practice, group, key, negative=negative) for negative in (True, False))
    if own is None or others is None:
        return ""
    fell = {"low": "fallen", "high": "risen"}[side]
    return (
        f"Since their step began the entropy at their positions had changed by {estimate(own)} nats, at those of "
        f"{SETS[side]}'s other tokens, which too have {fell}, by {estimate(others)}.{_idle_change(practice, key)}"
    )


def _idle_change(practice: Practice, key: str) -> str:
    own, others = (change_of(practice, IDLE, key, negative=negative) for negative in (True, False))
    if IDLE not in practice.groups or own is None or others is None:
        return ""
    return f" Where a coin drops tokens in the bounds' place it is {estimate(own)} and {estimate(others)}."


def prediction_words(practice: Practice, grain: str, which: str) -> str:
    """Which settings' predictions go with what was measured."""
    known = {
        setting: one
        for setting in practice.settings
        if (one := practice.estimate(setting, "prediction", f"{grain}|all|{which}", "correlation")) is not None
    }
    if not known:
        return ""
    kinds = {
        "goes with it in": [name for name, one in known.items() if one.excludes_zero and one.value > 0],
        "goes against it in": [name for name, one in known.items() if one.excludes_zero and one.value < 0],
        "is undecided in": [name for name, one in known.items() if not one.excludes_zero],
    }
    return "; ".join(f"{kind} {listed(names)}" for kind, names in kinds.items() if names)


def over_settings(practice: Practice, grain: str, which: str, name: str) -> SeedMean | None:
    """Of each seed the mean over its settings."""
    return practice.estimate(ALL, "prediction", f"{grain}|all|{which}", name)


def momentum_gain(practice: Practice, grain: str) -> SeedMean | None:
    """How much more the correlation is where the prediction has the optimizer's momentum, paired by seed."""
    plain_, smooth = (
        practice.by_seed(ALL, "prediction", f"{grain}|all|{which}", "correlation") for which in ("plain", "momentum")
    )
    return paired_difference(smooth, plain_)


def level_words(practice: Practice) -> list[str]:
    """Which entropies settings share."""
    shared = common_range(practice)
    lines = [
        f"All settings come to the entropies from {plain(shared[0])} to {plain(shared[1])} nats."
        if shared
        else "There is no entropy that all settings come to."
    ]
    for level in choose_levels(practice):
        if level.never:
            lines.append(f"To {plain(level.entropy)} nats no run comes of {listed(level.never)}.")
    return lines


def kl_words(practice: Practice, control: str) -> list[str]:
    """At the levels: where a setting's evaluation differs from the control's."""
    lines = []
    for metric in evaluation_metrics(practice):
        found, compared = [], 0
        for level in choose_levels(practice):
            for setting in practice.settings:
                one = difference_at(practice, setting, control, metric, level.entropy) if setting != control else None
                if one is None or one.half_width is None:
                    continue
                compared += 1
                if one.excludes_zero:
                    found.append(f"{setting} at {plain(level.entropy)} nats {estimate(one)}, of {one.n} seeds")
        name = metric.removeprefix("eval/")
        if not compared:
            lines.append(f"{name}: no setting shares an entropy with {control} in two seeds, so nothing is compared.")
            continue
        told = listed(found) if found else "none differs by more than its interval"
        lines.append(
            f"{name} less {control}'s at equal entropy, {numbered(compared, 'comparison')}: {told}. "
            "Of twenty that are none one is expected to differ."
        )
    return lines
