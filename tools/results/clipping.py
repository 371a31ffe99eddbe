"""docs/results/clipping.md: what clipping does to the entropy where the reward is random (arXiv 2509.26114)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megarl.ablation.seeds import SeedMean
from megarl.report.figure import AnyFigure
from results.clipping_prediction import prediction_rows, prediction_words
from results.ran import ran, table
from results.reading import BySeed, Results, difference, over_seeds
from results.words import Verdict, estimate, listed, mean, overall, verdict

TABLES = ("random-reward-small",)
OPTIONAL = ("random-reward-products-small",)
SECOND = OPTIONAL[0]
CLIPS = ("low0.2", "low0.1", "high0.2", "high0.1", "symmetric")
NONE = "none"
END, WHOLE = "entropy_end", "entropy_mean"


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
class Judged:
    """A claim on one task."""

    claim: Claim
    task: str
    differences: tuple[tuple[str, str, SeedMean, SeedMean], ...]
    """(setting, other, at the end, over the run) of the pairs that were run."""

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict(end, self.claim.sign) for _, _, end, _ in self.differences]

    @property
    def overall(self) -> Verdict:
        return overall(self.verdicts)


def compute(tables: Mapping[str, Results]) -> dict[str, Any]:
    """Values of the template."""
    found = list(tables.values())
    judged = [[judge(claim, one) for one in found] for claim in CLAIMS]
    first = found[0]
    return {
        "ran": ran(found),
        "has_second": len(found) > 1,
        "answers": [answer(claims) for claims in judged],
        "claims": claims_table(judged),
        "counts": _counts([one for claims in judged for one in claims]),
        "levels": [(task_of(one), levels_table(one)) for one in found],
        "falling": falling_words(found),
        "coins": coin_words(found),
        "dropped": [(task_of(one), dropped_table(one)) for one in found],
        "dropped_words": dropped_words(found),
        "predictions": [(task_of(one), prediction_rows(one, clips_of(one))) for one in found],
        "prediction_words": [prediction_words(one, clips_of(one)) for one in found],
        "facts": first.facts,
        "tasks": listed([task_of(one) for one in found]),
        "seeds": listed([f"{_seeds(one)} on {task_of(one)}" for one in found]),
    }


def figures(tables: Mapping[str, Results]) -> dict[str, AnyFigure]:
    """Entropy over the steps, a figure per claim, the second task, and predicted against measured changes."""
    first = tables[TABLES[0]]
    drawn = {
        "low": _entropy(first, "Clip-low and its controls", [NONE, *_with_coins(first, "low0.2", "low0.1")]),
        "high": _entropy(first, "Clip-high and its controls", [NONE, *_with_coins(first, "high0.2", "high0.1")]),
        "symmetric": _entropy(first, "Both bounds at 0.2", [NONE, *_with_coins(first, "symmetric")]),
        "predicted": first.figure("predicted_change", _present(first, [NONE, *CLIPS])),
    }
    if second := tables.get(SECOND):
        settings = [NONE, *_with_coins(second, *CLIPS)]
        drawn["products"] = _entropy(second, f"The second task, {task_of(second)}", settings)
    return drawn


def task_of(found: Results) -> str:
    return str(found.facts.config["data.train.task"])


def clips_of(found: Results) -> list[str]:
    """Those with a matched control, both run."""
    return [clip for clip in CLIPS if found.has(clip, f"{clip}-coin")]


def judge(claim: Claim, found: Results) -> Judged:
    """From H/H0 at the end and over the run, paired by seed."""
    rows = []
    for setting, other in claim.pairs:
        if not found.has(setting, other):
            continue
        end, whole = (difference(found.measure(setting, name), found.measure(other, name)) for name in (END, WHOLE))
        if end is not None and whole is not None:
            rows.append((setting, other, end, whole))
    return Judged(claim=claim, task=task_of(found), differences=tuple(rows))


def answer(claims: Sequence[Judged]) -> str:
    """One claim on all tasks, in a sentence or two."""
    claim = claims[0].claim
    heads = [f"{_word(one.overall)} on {one.task}" for one in claims]
    parts = []
    for one in claims:
        told = [f"{_pair(a, b)} {estimate(end)}" for a, b, end, _ in one.differences]
        parts.append(f"On {one.task}: {listed(told)}." if told else f"Nothing of it was run on {one.task}.")
    return f"**({claim.letter}) {claim.text}: {listed(heads)}.** {' '.join(parts)}"


def claims_table(judged: Sequence[Sequence[Judged]]) -> str:
    rows = []
    for claims in judged:
        for one in claims:
            for setting, other, end, whole in one.differences:
                sign = one.claim.sign
                rows.append(
                    [
                        f"({one.claim.letter}) {one.task}: {_pair(setting, other)}",
                        "+" if sign > 0 else "−",
                        estimate(end),
                        verdict(end, sign),
                        estimate(whole),
                        verdict(whole, sign),
                    ]
                )
    return table(["difference of H/H0", "claimed", "at the end", "", "over the run", ""], rows)


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


def falling_words(found: Sequence[Results]) -> str:
    """Whether entropy falls at all: of symmetric, and without bounds."""
    parts = []
    for one in found:
        told = []
        for setting in ("symmetric", NONE):
            if not one.has(setting):
                continue
            change = over_seeds({seed: value - 1 for seed, value in one.measure(setting, END).items()})
            word = {"reproduced": "falls", "contradicted": "rises", "undecided": "moves by no more than its interval"}
            told.append(f"{setting}'s entropy {word[verdict(change, -1)]} ({estimate(change)} of H0)")
        parts.append(f"On {task_of(one)} {listed(told)}.")
    return " ".join(parts)


def coin_words(found: Sequence[Results]) -> str:
    """What dropping tokens by a coin does, against no dropping."""
    parts = []
    for one in found:
        moved, still = [], []
        for clip in clips_of(one):
            by_coin = difference(one.measure(f"{clip}-coin", END), one.measure(NONE, END))
            if by_coin is None:
                continue
            (moved if by_coin.excludes_zero else still).append(f"{clip}-coin {estimate(by_coin)}")
        if moved:
            parts.append(f"On {task_of(one)} the coin alone moved H/H0 against none: {listed(moved)}.")
        if still:
            parts.append(f"On {task_of(one)} it made no difference to none that the seeds show: {listed(still)}.")
    return " ".join(parts)


def dropped_table(found: Results) -> str:
    """Tokens that a clip drops, and its coin."""
    rows = [
        [f"{clip}, {side}", mean(over_seeds(ours), 2, 100), mean(over_seeds(coin), 2, 100), estimate(less, 2, 100)]
        for clip, side, ours, coin, less in _dropped(found)
    ]
    return table(["% of response tokens", "clip drops", "coin drops", "difference"], rows)


def dropped_words(found: Sequence[Results]) -> str:
    parts = []
    for one in found:
        unequal = [
            f"{clip}, {side} side, by {estimate(less, 2, 100)} points"
            for clip, side, _, _, less in _dropped(one)
            if less is not None and less.excludes_zero
        ]
        where = f"On {task_of(one)}"
        parts.append(
            f"{where} clip and coin dropped unequally many: {listed(unequal)}; there the comparison is matched in its "
            "rule and not in its count."
            if unequal
            else f"{where} no side's difference between clip and coin exceeds its interval: the counts match."
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


def _counts(judged: Sequence[Judged]) -> dict[str, int]:
    """How many differences are decided, and which way."""
    verdicts = [one for each in judged for one in each.verdicts]
    return {
        "all": len(verdicts),
        **{name: verdicts.count(name) for name in ("reproduced", "contradicted", "undecided")},
    }


def _seeds(found: Results) -> str:
    counts = sorted({len(one.seeds) for one in found.facts.settings})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def _pair(setting: str, other: str) -> str:
    return f"{setting} less {'its coin' if other == f'{setting}-coin' else other}"


def _word(one: Verdict) -> str:
    return one


def _with_coins(found: Results, *clips: str) -> list[str]:
    return _present(found, [name for clip in clips for name in (clip, f"{clip}-coin")])


def _present(found: Results, settings: Sequence[str]) -> list[str]:
    return [name for name in settings if found.has(name)]


def _entropy(found: Results, title: str, settings: Sequence[str]) -> AnyFigure:
    return replace(found.figure("entropy_over_start", _present(found, settings)), title=title)
