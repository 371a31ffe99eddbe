"""Of clipping.md: what the clips did against what the runs' own budgets predicted."""

from collections.abc import Mapping, Sequence

import numpy as np

from megarl.ablation.seeds import LEVEL, SeedMean
from megarl.report.predicted import correlate
from results.first_order import measured_change, predicted_sum, size_ratio, step_correlation, step_slopes
from results.ran import table
from results.reading import BySeed, Results, difference, over_seeds
from results.words import estimate, listed, mean, plain, short, verdict

_DEALS = 2000
_FEWEST_SEEDS = 5
"""Of fewer there are too few ways to deal them."""
RUN_SCALE = 1e4
STEP_SCALE = 1e6
"""What first-order terms, nats, are multiplied by: of a whole run, and of one step."""
_COIN = {
    "reward.verifier.kind": "random",
    "reward.verifier.distribution": "bernoulli",
    "objective.advantage.method": "dr_grpo",
}
_TOLD = {
    "agree": "has the sign of the measured one",
    "opposite": "has the opposite sign",
    "open": "or the measured one is not decided",
}


def removed_table(found: Results, clips: Sequence[str], *, one_step: bool = False) -> str:
    """A row per clip: what its bounds took from the budget, Theorem 1's terms, and how well steps follow the budget,
    which one step cannot say."""
    scale = STEP_SCALE if one_step else RUN_SCALE
    rows = [
        [
            clip,
            _sum(found, clip, "entropy/budget_removed_low", -scale),
            _sum(found, clip, "entropy/budget_removed_high", -scale),
            _sum(found, clip, "entropy/clip_low_contribution", scale),
            _sum(found, clip, "entropy/clip_high_contribution", -scale),
            *([] if one_step else [mean(over_seeds(found.per_seed(clip, step_correlation)), 2)]),
        ]
        for clip in clips
    ]
    heads = ["10⁻⁶ nats" if one_step else "10⁻⁴ nats", "clip-low did", "clip-high did", "CL", "−CH"]
    return table([*heads, *([] if one_step else ["correlation of steps"])], rows)


def factor_words(found: Sequence[Results]) -> str:
    """What Theorem 1 has besides the two terms: E[max(A, 0)], as a number where the configuration gives it."""
    numbers = {short(one) for each in found if (one := _mean_positive_advantage(each)) is not None}
    known = f", here {listed(sorted(numbers))}" if numbers else ""
    return (
        f"its factor E[max(A, 0)]{known}, is not in them, and every token weighs the same in them, so set their signs "
        "beside what the bounds did before their sizes."
    )


def _mean_positive_advantage(found: Results) -> float | None:
    """Of a coin's reward less the mean of n responses: p (1 - p) (1 - 1 / n). None: another reward or advantage."""
    config = found.facts.config
    kind = tuple(config.get(name) for name in _COIN)
    if kind != tuple(_COIN.values()):
        return None
    p, samples = float(config["reward.verifier.p"]), int(config["train.samples_per_prompt"])
    return p * (1 - p) * (1 - 1 / samples)


def term_verdicts(
    found: Results, clips: Sequence[str], sides: Sequence[str], sign: int, *, scale: float = RUN_SCALE
) -> list[tuple[str, str, str]]:
    """(clip, what its bounds of these sides took from the budget, whether that has the claimed sign) of each clip."""
    rows = []
    for clip in clips:
        sums = [predicted_sum(found, clip, f"entropy/budget_removed_{side}", factor=-1) for side in sides]
        whole = over_seeds({seed: sum(one[seed] for one in sums) for seed in sums[0]})
        rows.append((clip, estimate(whole, 2, scale), verdict(whole, sign)))
    return rows


def prediction_table(found: Results, clips: Sequence[str]) -> str:
    """A row per clip: its run less its coin's, as predicted and as measured, after one step and after all."""
    rows = []
    for clip in clips:
        row = [clip]
        for steps in (1, None):
            predicted, measured = differences(found, clip, f"{clip}-coin", steps)
            row += [
                estimate(predicted, 2, RUN_SCALE),
                estimate(measured, 3),
                agreement(predicted, measured),
            ]
        rows.append(row)
    first = ["first step: predicted, 10⁻⁴", "measured", "signs"]
    return table(["less its coin, nats", *first, "all steps: predicted, 10⁻⁴", "measured", "signs"], rows)


def prediction_words(found: Results, clips: Sequence[str], where: str) -> str:
    """How well, over all clips."""
    parts = []
    for steps, name in ((1, "after the first step"), (None, "over all steps")):
        signs: dict[str, list[str]] = {}
        for clip in clips:
            signs.setdefault(agreement(*differences(found, clip, f"{clip}-coin", steps)), []).append(clip)
        told = [f"{_TOLD[word]} for {listed(names)}" for word, names in sorted(signs.items())]
        pairs = coin_pairs(found, clips, steps)
        parts.append(
            f"{name} the predicted difference {listed(told)}; over the {len(pairs)} pairs of runs, each less its "
            f"clip's mean, it has a correlation of {correlation_words(pairs)} with the measured one"
        )
    settings = [name for clip in clips for name in (clip, f"{clip}-coin")]
    first, second = parts
    return (
        f"On {where} {first}. {second[0].upper()}{second[1:]}. "
        f"Measured changes of a step are {short(size_ratio(found, settings))} times as large as predicted ones (root "
        "mean squares); the slope of the line through 0 that fits them best, a seed's settings together, is "
        f"{estimate(over_seeds(step_slopes(found, settings)), 0)}. The first number is no scale of the prediction: it "
        "has all that was measured, and the second only what goes with the prediction. Adam divides by the gradient's "
        "size, so a slope of 1 is not expected, and the prediction is of a direction and not of a size."
    )


def correlation_words(pairs: Mapping[tuple[str, int], tuple[float, float]]) -> str:
    """That of `coin_pairs`, each less its clip's mean, and what it exceeds in one case of twenty where the measured
    differences are dealt to other seeds: all clips of a seed together, as they share its prompts and its start. The
    means of several clips follow each other wherever bounds do what they are meant to, whether or not a run's
    prediction says anything of that run."""
    clips, seeds = list(dict.fromkeys(clip for clip, _ in pairs)), sorted({seed for _, seed in pairs})
    if len(pairs) < len(clips) * len(seeds) or len(seeds) < 2:
        return f"{plain(None)} (not every seed has every clip)"
    pairs_SC2 = np.array([[pairs[clip, seed] for clip in clips] for seed in seeds])
    predicted_SC, measured_SC = np.moveaxis(pairs_SC2 - pairs_SC2.mean(axis=0), -1, 0)
    found = plain(correlate(predicted_SC.ravel(), measured_SC.ravel()), 2)
    if len(seeds) < _FEWEST_SEEDS:
        return f"{found} (of {len(seeds)} seeds: too few to say what chance gives)"
    dealt = np.random.default_rng(0).permuted(np.tile(np.arange(len(seeds)), (_DEALS, 1)), axis=1)
    chance = [abs(correlate(predicted_SC.ravel(), measured_SC[order].ravel())) for order in dealt]
    return f"{found} (with the seeds dealt anew one in twenty is beyond ±{np.quantile(chance, LEVEL):.2f})"


def coin_pairs(found: Results, clips: Sequence[str], steps: int | None) -> dict[tuple[str, int], tuple[float, float]]:
    """(clip, seed) -> its predicted and its measured difference to the coin."""
    pairs: dict[tuple[str, int], tuple[float, float]] = {}
    for clip in clips:
        (ours, changed), (coin, by_coin) = (_changes(found, name, steps) for name in (clip, f"{clip}-coin"))
        for seed in sorted(ours.keys() & coin.keys() & changed.keys() & by_coin.keys()):
            pairs[clip, seed] = (ours[seed] - coin[seed], changed[seed] - by_coin[seed])
    return pairs


def agreement(predicted: SeedMean | None, measured: SeedMean | None) -> str:
    """ "agree" or "opposite" where both intervals exclude 0, else "open"."""
    if predicted is None or measured is None or not (predicted.excludes_zero and measured.excludes_zero):
        return "open"
    return "agree" if (predicted.value > 0) == (measured.value > 0) else "opposite"


def differences(found: Results, setting: str, other: str, steps: int | None) -> tuple[SeedMean | None, SeedMean | None]:
    """(predicted, measured) change of a setting's entropy less that of another's, nats per token."""
    (ours, changed), (theirs, by_other) = (_changes(found, name, steps) for name in (setting, other))
    return difference(ours, theirs), difference(changed, by_other)


def _changes(found: Results, setting: str, steps: int | None) -> tuple[BySeed, BySeed]:
    """(predicted, measured) by seed."""
    measured = found.per_seed(setting, lambda run: measured_change(run, steps))
    return predicted_sum(found, setting, steps=steps), measured


def _sum(found: Results, clip: str, metric: str, factor: float) -> str:
    sums = predicted_sum(found, clip, metric, factor=factor)
    return estimate(over_seeds(sums), 2) if any(sums.values()) else "–"
