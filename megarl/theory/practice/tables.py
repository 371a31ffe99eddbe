"""What runs say of the theorems, as tables of text: means over runs with their 95 % intervals over seeds."""

from collections.abc import Iterator, Sequence

from megarl.ablation.seeds import SeedMean
from megarl.theory.practice.equal_entropy import (
    STEP,
    choose_levels,
    difference_at,
    estimate_at,
    evaluation_metrics,
    has_series,
)
from megarl.theory.practice.estimates import change_of, of_ratio, shown
from megarl.theory.practice.numbers import Practice
from megarl.theory.practice.tokens import CLASSES
from megarl.theory.practice.updates import SIDES
from megarl.theory.tables import TheoryTable

SET_OF = {"low": "X", "high": "Y"}
GRAINS = ("one update", "since the step began", "one step", "own state")
GRAIN_TITLES = {"one step": "next step's responses", "own state": "own state, next step"}
"""Of those that the tables call otherwise."""
_DASH = "-"


def build_practice_tables(practice: Practice) -> list[TheoryTable]:
    """Those that the runs have numbers for, in order."""
    tables = [
        sign_table(practice),
        token_table(practice),
        class_table(practice),
        prediction_table(practice),
        growth_table(practice),
        equal_table(practice),
        against_control_table(practice),
    ]
    return [table for table in tables if table.rows]


def _rows_of(practice: Practice) -> list[str]:
    return [*practice.groups, *practice.settings]


def sign_table(practice: Practice) -> TheoryTable:
    """By update."""
    rows = [
        _sign_cells(practice, side, setting)
        for side in SIDES
        for setting in _rows_of(practice)
        if practice.estimate(setting, "sign", side, "negative") is not None
    ]
    return TheoryTable(
        title="The sign of clipping's term, update by update",
        caption="updates: those with a token in the set. term: mean of r 1[set] (N - Q), millinats. negative: share of "
        "updates with E[Q] - E[Q|set] < 0, %. against: share where what clipping took away pushed the entropy the "
        "other way, %. Entropy change from the mini-batch before the update's to the one after it, millinats: around "
        "negative updates, around others, and the difference between updates of the same place in a step. steps: share "
        "of steps with the sign below 0, and the difference around them, from the step before to the step after",
        columns=(
            *("<set", "<setting", "updates", "term", "negative %", "against %"),
            *("change", "of others", "difference", "steps %", "by step"),
        ),
        rows=rows,
    )


def _sign_cells(practice: Practice, side: str, setting: str) -> tuple[str, ...]:
    def get(name: str) -> SeedMean | None:
        return practice.estimate(setting, "sign", side, name)

    wanted = practice.members(setting)
    return (
        SET_OF[side],
        setting,
        f"{practice.total(wanted, 'sign', side, 'updates'):,.0f}",
        shown(get("contribution"), scale=1e3, digits=2, sign=True),
        shown(get("negative"), scale=100),
        shown(get("against"), scale=100),
        *(
            shown(get(name), scale=1e3, digits=2, sign=True)
            for name in ("change_negative", "change_other", "change_difference")
        ),
        shown(get("steps_negative"), scale=100),
        shown(get("step_difference"), scale=1e3, digits=2, sign=True),
    )


def token_table(practice: Practice) -> TheoryTable:
    """By token, of every setting."""
    rows = []
    for side in SIDES:
        for setting in _rows_of(practice):
            key = f"{side}|all|0"
            if of_ratio(practice, setting, key, "negative", "inside") is None:
                continue
            rows.append(_token_cells(practice, setting, key))
    return TheoryTable(
        title="Clipped tokens, one by one",
        caption="traced tokens. in set: share of all, %. dropped: share of all that the clip took out, %. negative: of "
        "the set's tokens those with N - Q < 0, %. likely: those with -log p < H, %. change: of their positions' own "
        "entropy since the step began, nats; of the negative ones, and of the set's others",
        columns=(
            "<set",
            "<setting",
            "tokens",
            "in set %",
            "dropped %",
            "negative %",
            "likely %",
            "their change",
            "others' change",
        ),
        rows=rows,
    )


def _token_cells(practice: Practice, setting: str, key: str) -> tuple[str, ...]:
    wanted = practice.members(setting)
    side = key.partition("|")[0]
    return (
        SET_OF[side],
        setting,
        f"{practice.total(wanted, 'tokens', key, 'tokens'):,.0f}",
        shown(of_ratio(practice, setting, key, "inside", "tokens"), scale=100, digits=2),
        shown(of_ratio(practice, setting, key, "dropped", "tokens"), scale=100, digits=2),
        shown(of_ratio(practice, setting, key, "negative", "inside"), scale=100),
        shown(of_ratio(practice, setting, key, "likely", "inside"), scale=100),
        shown(change_of(practice, setting, key, negative=True), digits=3, sign=True),
        shown(change_of(practice, setting, key, negative=False), digits=3, sign=True),
    )


def class_table(practice: Practice) -> TheoryTable:
    """By surprisal, entropy and position, over all settings."""
    setting = _rows_of(practice)[0]
    rows = []
    for side in SIDES:
        for kind, names in CLASSES.items():
            for index, name in enumerate(names):
                key = f"{side}|{kind}|{index}"
                inside = of_ratio(practice, setting, key, "inside", "tokens")
                if kind != "all" and inside is not None:
                    rows.append(
                        (
                            *(SET_OF[side], kind, name),
                            f"{practice.total(practice.settings, 'tokens', key, 'tokens'):,.0f}",
                            shown(inside, scale=100, digits=2),
                            shown(of_ratio(practice, setting, key, "negative", "inside"), scale=100),
                            shown(of_ratio(practice, setting, key, "gap", "tokens"), scale=1e3, digits=2, sign=True),
                        )
                    )
    return TheoryTable(
        title="Where they are",
        caption=f"{setting}; traced tokens by -log p (nats), by fifth of the step's entropies, by position in the "
        "response. in set, negative: as above, %. term: mean over the class of r 1[set] (N - Q), millinats",
        columns=("<set", "<by", "<class", "tokens", "in set %", "negative %", "term"),
        rows=rows,
    )


def prediction_table(practice: Practice) -> TheoryTable:
    """Every grain of a setting, both predictions."""
    rows = []
    for setting in practice.settings:
        for grain in GRAINS:
            for which in ("plain", "momentum"):
                key = f"{grain}|all|{which}"
                cells = _prediction_cells(practice, setting, key)
                if cells:
                    rows.append(
                        (setting, *_optimizer(practice, setting), GRAIN_TITLES.get(grain, grain), which, *cells)
                    )
    return TheoryTable(
        title="Predicted and measured entropy change",
        caption="predicted: step size * budget, or with the budget averaged as the optimizer averages gradients "
        "(momentum). measured: on one mini-batch's tokens against their entropy before the step; of one update, "
        "from the mini-batch before its own to the one after; of a step, on the next step's responses; of a state, its "
        "own entropy. n: pairs in all runs. sign: share with one sign, %. "
        "slope: measured per predicted. error: what the slope leaves of the measured, 1 is all",
        columns=(
            *("<setting", "lr", "eps", "beta1", "<measured over", "<predicted", "n", "sign %", "correlation"),
            *("slope", "error"),
        ),
        rows=rows,
    )


def _optimizer(practice: Practice, setting: str) -> tuple[str, ...]:
    found = [practice.estimate(setting, "run", "", name) for name in ("lr", "eps", "beta1")]
    return tuple(_DASH if one is None else f"{one.value:.3g}" for one in found)


def _prediction_cells(practice: Practice, setting: str, key: str) -> tuple[str, ...] | None:
    if practice.estimate(setting, "prediction", key, "n") is None:
        return None
    get = {
        name: practice.estimate(setting, "prediction", key, name) for name in ("sign", "correlation", "slope", "error")
    }
    slope = get["slope"]
    width = "" if slope is None or slope.half_width is None else f" ± {slope.half_width:.2g}"
    return (
        f"{practice.total([setting], 'prediction', key, 'n'):,.0f}",
        shown(get["sign"], scale=100, digits=0),
        shown(get["correlation"], digits=2, sign=True),
        _DASH if slope is None else f"{slope.value:.3g}{width}",
        shown(get["error"], digits=2),
    )


def growth_table(practice: Practice) -> TheoryTable:
    """How the agreement goes on within a step."""
    groups = list(
        dict.fromkeys(
            key.split("|")[1]
            for key in practice.keys("prediction")
            if key.startswith("since") and key.split("|")[1] != "all"
        )
    )
    groups.sort(key=lambda group: int(group.split("-")[0]))
    rows = []
    for setting in practice.settings:
        for grain in GRAINS[:2]:
            for group in groups:
                cells = _prediction_cells(practice, setting, f"{grain}|{group}|plain")
                if cells:
                    rows.append((setting, grain, group, *cells))
    return TheoryTable(
        title="The same by the update's place in its step",
        caption="update: how many have been made when it is measured; step size * budget. Other columns as above",
        columns=("<setting", "<measured over", "update", "n", "sign %", "correlation", "slope", "error"),
        rows=rows,
    )


_SHOWN = (
    ("reward/mean", "reward", 1.0, 3),
    ("actor/kl_loss", "KL to start", 1.0, 4),
    ("clip_ratio/low_mean", "clip-low %", 100.0, 2),
    ("clip_ratio/high_mean", "clip-high %", 100.0, 2),
    ("actor/ratio_max", "largest r", 1.0, 2),
)


def _measures(practice: Practice) -> list[tuple[str, str, float, int]]:
    evaluated = [(name, name.removeprefix("eval/"), 1.0, 3) for name in evaluation_metrics(practice)]
    known = has_series(practice, [metric for metric, *_ in _SHOWN])
    return [*evaluated, *(one for one in _SHOWN if one[0] in known)]


def equal_table(practice: Practice) -> TheoryTable:
    """At every level, of the settings that come to it."""
    measures = _measures(practice)
    rows, notes = [], []
    for level in choose_levels(practice) if len(practice.settings) > 1 else []:
        for setting in (*level.settings, *level.some):
            steps = estimate_at(practice, setting, STEP, level.entropy)
            cells = (
                shown(
                    estimate_at(practice, setting, metric, level.entropy),
                    scale=scale,
                    digits=digits,
                    of=steps.n if steps else None,
                )
                for metric, _, scale, digits in measures
            )
            rows.append((f"{level.entropy:.3f}", setting, str(steps.n if steps else 0), shown(steps), *cells))
        for who, text in ((level.some, "only some runs of"), (level.never, "no run of")):
            if who:
                notes.append(f"to an entropy of {level.entropy:.3f} {text}: {', '.join(who)}")
    return TheoryTable(
        title="At equal entropy",
        caption="where a run has this entropy for the last time, straight between its steps, of an evaluation between "
        "the evaluations beside it; n: runs that have it, [2]: two of them have this number; step: when. A dash: not "
        "measured there",
        columns=("entropy", "<setting", "n", "step", *(title for _, title, _, _ in measures)),
        rows=rows,
        notes=notes,
    )


def against_control_table(practice: Practice) -> TheoryTable:
    """Paired with the control at the same entropy."""
    wanted = [one for one in _measures(practice) if one[0] == "reward/mean" or one[0].startswith("eval/")]
    return TheoryTable(
        title="Against the control, at equal entropy",
        caption="setting less control, paired by seed. n: seeds that both come to the entropy with, [2]: two of them "
        "have this number",
        columns=("entropy", "<setting", "<control", "n", "steps", *(title for _, title, _, _ in wanted)),
        rows=list(_control_rows(practice, wanted)),
    )


def _control_rows(practice: Practice, wanted: Sequence[tuple[str, str, float, int]]) -> Iterator[tuple[str, ...]]:
    for level in choose_levels(practice):
        for setting, control in practice.controls.items():
            steps = difference_at(practice, setting, control, STEP, level.entropy)
            if steps is not None:
                differences = (
                    shown(
                        difference_at(practice, setting, control, metric, level.entropy),
                        scale=scale,
                        digits=digits,
                        sign=True,
                        of=steps.n,
                    )
                    for metric, _, scale, digits in wanted
                )
                yield f"{level.entropy:.3f}", setting, control, str(steps.n), shown(steps, sign=True), *differences
