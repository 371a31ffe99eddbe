"""docs/results/clipping.md: what clipping does to the entropy where the reward is random (arXiv 2509.26114)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megarl.ablation.seeds import SeedMean
from megarl.report.figure import AnyFigure, LineFigure
from megarl.report.stored_runs import StoredRun
from results.clipping_prediction import prediction_table, prediction_words, removed_table
from results.ran import ran, table
from results.reading import BySeed, Results, difference, over_seeds
from results.words import Verdict, estimate, field, listed, mean, overall, verdict

TABLES = ("random-reward-small",)
OPTIONAL = ("random-reward-slow-small", "random-reward-products-small")
CLIPS = ("low0.2", "low0.1", "high0.2", "high0.1", "symmetric")
NONE = "none"
SHOWN = {
    "Clip-low and its controls": ("low0.2", "low0.1"),
    "Clip-high and its controls": ("high0.2", "high0.1"),
    "Both bounds and their control": ("symmetric",),
}
"""Figures: title -> clips."""
END, WHOLE = "entropy_end", "entropy_mean"
_START = ("actor/old_entropy", "reward/mean", "response_length/mean")
FIRST = 2
"""The step before whose updates the first step's effect is measured."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One of the paper's, as differences of H/H0 that have a sign."""

    letter: str
    text: str
    sign: int
    pairs: tuple[tuple[str, str], ...]
    """(setting, what it is compared with)."""


CLAIMS = (
    Claim(
        letter="a",
        text="a smaller `low` raises entropy",
        sign=1,
        pairs=(("low0.2", "low0.2-coin"), ("low0.1", "low0.1-coin"), ("low0.1", "low0.2")),
    ),
    Claim(
        letter="b",
        text="a smaller `high` lowers entropy",
        sign=-1,
        pairs=(("high0.2", "high0.2-coin"), ("high0.1", "high0.1-coin"), ("high0.1", "high0.2")),
    ),
    Claim(
        letter="c",
        text="symmetric clipping lowers entropy",
        sign=-1,
        pairs=(("symmetric", "symmetric-coin"), ("symmetric", NONE)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One difference of H/H0: after the first step, at the end, over the run."""

    setting: str
    other: str
    first: SeedMean | None
    end: SeedMean | None
    whole: SeedMean | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim in one ablation."""

    claim: Claim
    where: str
    differences: tuple[Compared, ...]
    """Of the pairs that were run."""

    @property
    def at_end(self) -> list[Verdict]:
        return [verdict(one.end, self.claim.sign) for one in self.differences]

    @property
    def after_first(self) -> list[Verdict]:
        return [verdict(one.first, self.claim.sign) for one in self.differences]


def compute(tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the template."""
    named = labels(tables)
    judged = [[judge(claim, found, where) for where, found in named.items()] for claim in CLAIMS]
    every = [one for claims in judged for one in claims]
    found = list(named.values())
    return {
        "ran": ran(found),
        "missing": [name for name in OPTIONAL if name not in tables],
        "answers": [answer(claims) for claims in judged],
        "first_words": first_words(named),
        "claims": claims_table(judged),
        "at_end": _counts([one for each in every for one in each.at_end]),
        "after_first": _counts([one for each in every for one in each.after_first]),
        "levels": [(where, levels_table(one)) for where, one in named.items()],
        "falling": falling_words(named),
        "coins": coin_words(named),
        "dropped": [(where, dropped_table(one)) for where, one in named.items()],
        "dropped_words": dropped_words(named),
        "removed": [(where, removed_table(one, clips_of(one))) for where, one in named.items()],
        "predictions": [(where, prediction_table(one, clips_of(one))) for where, one in named.items()],
        "prediction_words": [prediction_words(one, clips_of(one), where) for where, one in named.items()],
        "facts": found[0].facts,
        "tasks": listed(list(dict.fromkeys(task_of(one) for one in found))),
        "steps": listed([f"{listed(one.facts.steps)} steps on {where}" for where, one in named.items()]),
        "seeds": listed([f"{_seeds(one)} on {where}" for where, one in named.items()]),
    }


def figures(tables: Mapping[str, Results]) -> dict[str, AnyFigure]:
    """Entropy over the steps, a figure per claim and ablation, and predicted against measured changes."""
    drawn: dict[str, AnyFigure] = {}
    for name, found in tables.items():
        key = "" if name == TABLES[0] else f"{name.removeprefix('random-reward-').removesuffix('-small')}-"
        where = next(label for label, one in labels(tables).items() if one is found)
        for title, clips in SHOWN.items():
            if shown := [clip for clip in clips if found.has(clip)]:
                settings = _present(found, [NONE, *(part for clip in shown for part in (clip, f"{clip}-coin"))])
                drawn[f"{key}{clips[0].rstrip('.012')}"] = _entropy(found, f"{title}: {where}", settings)
        drawn[f"{key}predicted"] = found.figure("predicted_change", _present(found, [NONE, *CLIPS]))
    return drawn


def labels(tables: Mapping[str, Results]) -> dict[str, Results]:
    """The ablations by what a reader calls them: the task, with the rate where one task has several."""
    tasks = [task_of(one) for one in tables.values()]
    return {
        task if tasks.count(task) == 1 else f"{task} at rate {field(one.facts.optimizer['lr'])}": one
        for task, one in zip(tasks, tables.values(), strict=True)
    }


def task_of(found: Results) -> str:
    return str(found.facts.config["data.train.task"])


def clips_of(found: Results) -> list[str]:
    """Those with a matched control, both run."""
    return [clip for clip in CLIPS if found.has(clip, f"{clip}-coin")]


def after_first(found: Results, setting: str) -> BySeed:
    """H/H0 after the first step's updates."""

    def number(run: StoredRun) -> float | None:
        steps, values = run.series("actor/entropy_over_start")
        return dict(zip(steps.tolist(), values.tolist(), strict=True)).get(FIRST)

    return found.per_seed(setting, number)


def first_words(named: Mapping[str, Results]) -> str:
    """What runs of a seed share in the first step, as far as the tables tell."""
    unlike = [where for where, one in named.items() if not shares_first_step(one)]
    start = '"After the first step" is H/H0 before the second step\'s updates.'
    if unlike:
        return f"{start} On {listed(unlike)} runs of one seed had other responses already in step 1."
    return (
        f"{start} It is the cleanest pair: in step 1 all runs of a seed have the same entropy, reward and length of "
        "responses, so only what is dropped differs."
    )


def shares_first_step(found: Results) -> bool:
    """Whether all runs of each seed begin with the same entropy, mean reward and mean length."""
    starts: dict[int, set[tuple[float, ...]]] = {}
    for runs in found.runs.values():
        for seed, run in runs.items():
            numbers = tuple(float(run.series(name)[1][0]) for name in _START if name in run)
            starts.setdefault(seed, set()).add(numbers)
    return all(len(one) == 1 for one in starts.values())


def judge(claim: Claim, found: Results, where: str) -> Judged:
    """From H/H0, paired by seed."""
    rows = [
        Compared(
            setting=setting,
            other=other,
            first=difference(after_first(found, setting), after_first(found, other)),
            end=difference(found.measure(setting, END), found.measure(other, END)),
            whole=difference(found.measure(setting, WHOLE), found.measure(other, WHOLE)),
        )
        for setting, other in claim.pairs
        if found.has(setting, other)
    ]
    return Judged(claim=claim, where=where, differences=tuple(rows))


def answer(claims: Sequence[Judged]) -> str:
    """One claim in all ablations, in a sentence or two each."""
    claim = claims[0].claim
    parts = []
    for one in claims:
        if not one.differences:
            parts.append(f"On {one.where} nothing of it was run.")
            continue
        end, first = overall(one.at_end), overall(one.after_first)
        told = [f"{_pair(each.setting, each.other)} {estimate(each.end)}" for each in one.differences]
        parts.append(f"On {one.where} **{end}** at the end ({listed(told)}), and {first} after the first step.")
    return f"**({claim.letter}) {claim.text}.** {' '.join(parts)}"


def claims_table(judged: Sequence[Sequence[Judged]]) -> str:
    rows = []
    for one in (one for claims in judged for one in claims):
        sign = one.claim.sign
        for each in one.differences:
            cells = [f"{estimate(value)} {verdict(value, sign)}" for value in (each.first, each.end, each.whole)]
            name = f"({one.claim.letter}) {one.where}: {_pair(each.setting, each.other)}"
            rows.append([name, "+" if sign > 0 else "−", *cells])
    return table(["difference of H/H0", "claimed", "after the first step", "at the end", "over the run"], rows)


def levels_table(found: Results) -> str:
    """Every setting's own numbers."""
    rows = []
    for one in found.facts.settings:
        if not found.has(one.name):
            continue
        end, whole = found.measure(one.name, END), found.measure(one.name, WHOLE)
        free = found.measure(NONE, END) if one.name != NONE and found.has(NONE) else {}
        control = one.control if one.control not in (None, NONE) else None
        matched = found.measure(control, END) if control and found.has(control) else {}
        rows.append(
            [
                one.name,
                mean(over_seeds(end)),
                mean(over_seeds(whole)),
                estimate(difference(end, matched)),
                estimate(difference(end, free)),
                str(len(end)),
            ]
        )
    return table(["", "H/H0 at the end", "over the run", "less its coin", "less none", "seeds"], rows)


def falling_words(named: Mapping[str, Results]) -> str:
    """Whether entropy falls at all: of symmetric, and without bounds."""
    parts = []
    for where, one in named.items():
        told = []
        for setting in ("symmetric", NONE):
            if not one.has(setting):
                continue
            change = over_seeds({seed: value - 1 for seed, value in one.measure(setting, END).items()})
            word = {"reproduced": "falls", "contradicted": "rises", "undecided": "moves by no more than its interval"}
            told.append(f"{setting}'s entropy {word[verdict(change, -1)]} ({estimate(change)} of H0)")
        parts.append(f"On {where} {listed(told)}.")
    return " ".join(parts)


def coin_words(named: Mapping[str, Results]) -> str:
    """What dropping tokens by a coin does, against no dropping."""
    parts = []
    for where, one in named.items():
        moved, still = [], []
        for clip in clips_of(one):
            by_coin = difference(one.measure(f"{clip}-coin", END), one.measure(NONE, END))
            if by_coin is None:
                continue
            (moved if by_coin.excludes_zero else still).append(f"{clip}-coin {estimate(by_coin)}")
        if moved:
            parts.append(f"On {where} the coin alone moved H/H0 against none: {listed(moved)}.")
        if still:
            parts.append(f"On {where} it made no difference to none that the seeds show: {listed(still)}.")
    return " ".join(parts)


def dropped_table(found: Results) -> str:
    """Tokens that a clip drops, and its coin."""
    rows = [
        [f"{clip}, {side}", mean(over_seeds(ours), 2, 100), mean(over_seeds(coin), 2, 100), estimate(less, 2, 100)]
        for clip, side, ours, coin, less in _dropped(found)
    ]
    return table(["% of response tokens", "clip drops", "coin drops", "difference"], rows)


def dropped_words(named: Mapping[str, Results]) -> str:
    parts = []
    for where, one in named.items():
        unequal = [
            f"{clip}, {side} side, by {estimate(less, 2, 100)} points"
            for clip, side, _, _, less in _dropped(one)
            if less is not None and less.excludes_zero
        ]
        parts.append(
            f"On {where} clip and coin dropped unequally many: {listed(unequal)}; there the comparison is matched in "
            "its rule and not in its count."
            if unequal
            else f"On {where} no side's difference between clip and coin exceeds its interval: the counts match."
        )
    return " ".join(parts)


def _dropped(found: Results) -> Iterator[tuple[str, str, BySeed, BySeed, SeedMean | None]]:
    """(clip, side, its share per seed, its coin's, the paired difference); without sides that nothing acts on."""
    for clip in clips_of(found):
        for side in ("low", "high"):
            ours = found.mean_of(clip, f"clip_ratio/{side}_mean")
            coin = found.mean_of(f"{clip}-coin", f"matched/{side}_dropped")
            if any(ours.values()) or any(coin.values()):
                yield clip, side, ours, coin, difference(ours, coin)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many differences are decided, and which way."""
    return {
        "all": len(verdicts),
        **{name: verdicts.count(name) for name in ("reproduced", "contradicted", "undecided")},
    }


def _seeds(found: Results) -> str:
    counts = sorted({len(one.seeds) for one in found.facts.settings})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def _pair(setting: str, other: str) -> str:
    return f"{setting} less {'its coin' if other == f'{setting}-coin' else other}"


def _present(found: Results, settings: Sequence[str]) -> list[str]:
    return [name for name in settings if found.has(name)]


def _entropy(found: Results, title: str, settings: Sequence[str]) -> AnyFigure:
    figure = found.figure("entropy_over_start", _present(found, settings))
    assert isinstance(figure, LineFigure)
    return replace(figure, title=title, subtitle=f"{figure.subtitle}; the axis begins at the data", axis="data")
