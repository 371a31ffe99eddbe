"""Of clipping.md: what a clip and its matched control have in common, and what not: tokens dropped, how far they go."""

import math
from collections.abc import Iterator, Mapping

from megarl.ablation.seeds import SeedMean
from results.clipping_claims import NONE
from results.clipping_levels import clips_of
from results.ran import table
from results.reading import BySeed, Results, difference, over_seeds
from results.words import estimate, listed, mean, plain

_KL = "actor/ppo_kl"


def dropped_table(found: Results, step: int | None = None) -> str:
    """Tokens that a clip drops, and its coin; of one step, or the mean over all."""
    rows = [
        [f"{clip}, {side}", mean(over_seeds(ours), 2, 100), mean(over_seeds(coin), 2, 100), estimate(less, 2, 100)]
        for clip, side, ours, coin, less in _dropped(found, step)
    ]
    return table(["% of response tokens", "clip drops", "coin drops", "difference"], rows)


def dropped_words(named: Mapping[str, Results]) -> str:
    parts = []
    for where, one in named.items():
        unequal = [
            f"{clip}, {side} side, by {estimate(less, 2, 100)} points"
            for clip, side, _, _, less in _dropped(one, None)
            if less is not None and less.excludes_zero
        ]
        parts.append(
            f"On {where} clip and coin dropped unequally many: {listed(unequal)}; there the comparison is matched in "
            "its rule and not in its count."
            if unequal
            else f"On {where} no side's difference between clip and coin exceeds its interval."
        )
    return " ".join(parts)


def moved_table(found: Results, step: int | None = None) -> str:
    """How far the policy goes within a step under a clip, and under its coin; of one step, or the mean over all."""
    free = _of(found, NONE, _KL, step) if found.has(NONE) else {}
    rows = [
        [clip, mean(over_seeds(ours), 4), mean(over_seeds(coin), 4), estimate(difference(ours, coin), 4)]
        for clip, ours, coin in _moved(found, step)
    ]
    if free:
        rows.append([NONE, mean(over_seeds(free), 4), "–", "–"])
    return table(["nats", "with the clip", "with its coin", "difference"], rows)


def moved_words(named: Mapping[str, Results], step: int | None = None) -> str:
    """Whose policies go further, clips' or coins'."""
    nearer, further, undecided = [], [], []
    for where, one in named.items():
        less = {clip: difference(ours, coin) for clip, ours, coin in _moved(one, step)}
        shorter = [clip for clip, each in less.items() if each and each.excludes_zero and each.value < 0]
        longer = [clip for clip, each in less.items() if each and each.excludes_zero and each.value > 0]
        if shorter:
            factors = [_factor(one, clip, step) for clip in shorter]
            spread = " to ".join(dict.fromkeys(plain(each, 1) for each in (min(factors), max(factors))))
            nearer.append(f"on {where} for {listed(shorter)} ({spread} times the KL)")
        if longer:
            further.append(f"with {listed(longer)} on {where}")
        if rest := [clip for clip in less if clip not in (*shorter, *longer)]:
            undecided.append(f"{listed(rest)} on {where}")
    parts = []
    if nearer:
        parts.append(f"The policy goes further with the coin than with the clip: {listed(nearer)}.")
    if further:
        parts.append(f"It goes further {listed(further)} than with the coin.")
    if undecided:
        parts.append(f"Which of them goes further is open for {listed(undecided)}.")
    if nearer or further:
        parts.append(
            "So a part of a clip's difference from its coin may come by way of how far the policy went, and not of "
            "whose terms left the budget."
        )
    return " ".join(parts)


def _factor(found: Results, clip: str, step: int | None) -> float:
    """The coin's mean over the clip's, of the seeds that both have; NaN where the clip's is not above 0."""
    coin, ours = (_of(found, name, _KL, step) for name in (f"{clip}-coin", clip))
    both = coin.keys() & ours.keys()
    total = sum(ours[seed] for seed in both)
    return sum(coin[seed] for seed in both) / total if total > 0 else math.nan


def _moved(found: Results, step: int | None) -> Iterator[tuple[str, BySeed, BySeed]]:
    """(clip, its KL per seed, its coin's), where both have one."""
    for clip in clips_of(found):
        ours, coin = (_of(found, name, _KL, step) for name in (clip, f"{clip}-coin"))
        if ours and coin:
            yield clip, ours, coin


def _dropped(found: Results, step: int | None) -> Iterator[tuple[str, str, BySeed, BySeed, SeedMean | None]]:
    """(clip, side, its share per seed, its coin's, the paired difference); without sides that nothing acts on."""
    for clip in clips_of(found):
        for side in ("low", "high"):
            ours = _of(found, clip, f"clip_ratio/{side}_mean", step)
            coin = _of(found, f"{clip}-coin", f"matched/{side}_dropped", step)
            if any(ours.values()) or any(coin.values()):
                yield clip, side, ours, coin, difference(ours, coin)


def _of(found: Results, setting: str, metric: str, step: int | None) -> BySeed:
    return found.mean_of(setting, metric) if step is None else found.at_step(setting, metric, step)
