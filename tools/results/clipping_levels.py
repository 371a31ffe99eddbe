"""Of clipping.md: every setting's own numbers."""

import math
from collections.abc import Mapping

from results.clipping_claims import CLIPS, END, NONE, WHOLE, present
from results.ran import table
from results.reading import Results, difference, over_seeds
from results.words import estimate, listed, mean, plain, verdict

_NEAR_NONE = 0.25
"""H/H0 below which a run has lost most of its entropy."""
_START = ("actor/old_entropy", "reward/mean", "response_length/mean")


def clips_of(found: Results) -> list[str]:
    """Those with a matched control, both run."""
    return [clip for clip in CLIPS if found.has(clip, f"{clip}-coin")]


def levels_table(found: Results, *, one_step: bool = False) -> str:
    """Every setting's own numbers; of runs that measure one step, without a mean over the run."""
    rows = []
    for one in found.facts.settings:
        if not found.has(one.name):
            continue
        end, whole = found.measure(one.name, END), found.measure(one.name, WHOLE)
        free = found.measure(NONE, END) if one.name != NONE and found.has(NONE) else {}
        control = one.control if one.control not in (None, NONE) else None
        matched = found.measure(control, END) if control and found.has(control) else {}
        row = [one.name, mean(over_seeds(end))]
        row += [] if one_step else [mean(over_seeds(whole))]
        rows.append([*row, estimate(difference(end, matched)), estimate(difference(end, free)), str(len(end))])
    heads = ["H/H0 after the step"] if one_step else ["H/H0 at the end", "over the run"]
    return table(["", *heads, "less its coin", "less none", "seeds"], rows)


def falling_words(named: Mapping[str, Results]) -> str:
    """Whether entropy falls at all: of symmetric, and without bounds."""
    words = {"reproduced": "falls", "contradicted": "rises", "undecided": "moves by no more than its interval"}
    parts = []
    for where, one in named.items():
        settings = present(one, ["symmetric", NONE])
        changes = {
            name: over_seeds({seed: value - 1 for seed, value in one.measure(name, END).items()}) for name in settings
        }
        told = [
            f"{name}'s entropy {words[verdict(each, -1)]} ({estimate(each)} of H0)" for name, each in changes.items()
        ]
        parts.append(f"On {where} {listed(told)}.")
        if len(changes) == 2 and all(verdict(each, -1) == "reproduced" for each in changes.values()):
            parts.append("That symmetric's entropy falls is by itself no evidence of its bounds; its differences are.")
    return " ".join(parts)


def wandering_words(named: Mapping[str, Results]) -> str:
    """How far runs of one setting end from each other."""
    parts = []
    for where, one in named.items():
        ends = {name: one.measure(name, END).values() for name in one.runs if one.has(name)}
        every = [value for values in ends.values() for value in values]
        widest = max(ends, key=lambda name: max(ends[name]) - min(ends[name]))
        parts.append(
            f"On {where} H/H0 ends between {plain(min(every), 2)} and {plain(max(every), 2)} over all runs, and within "
            f"one setting, {widest}, between {plain(min(ends[widest]), 2)} and {plain(max(ends[widest]), 2)}."
        )
        parts.append(_extreme_words(one))
    return " ".join(parts)


def _extreme_words(found: Results) -> str:
    """How many runs end near the two entropies that no run can pass: 0, and that of a uniform policy."""
    vocabulary = int(found.facts.model["vocab_size"])
    largest, near_largest, near_none, runs = 0.0, 0, 0, 0
    for setting in found.runs:
        starts = found.per_seed(setting, lambda run: float(run.series(_START[0])[1][0]))
        for seed, end in found.measure(setting, END).items():
            most = math.log(vocabulary) / starts[seed]
            largest, runs = max(largest, most), runs + 1
            near_largest += end > most / 2
            near_none += end < _NEAR_NONE
    return (
        f"A policy that is uniform over the {vocabulary} tokens has {plain(largest, 2)}: {near_largest} of {runs} runs "
        f"end above half of that, {near_none} below {_NEAR_NONE:g}."
    )


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
