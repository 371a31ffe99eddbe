"""Of clipping.md: what the clips did against what the runs' own budgets predicted."""

from collections.abc import Sequence

from megarl.ablation.seeds import SeedMean
from results.first_order import correlation, measured_change, predicted_sum, size_ratio, step_correlation
from results.ran import table
from results.reading import Results, difference, over_seeds
from results.words import estimate, listed, mean, plain, short


def prediction_rows(found: Results, clips: Sequence[str]) -> str:
    """A row per clip: what its bounds took from the budget, Theorem 1's terms, and the difference to its coin."""
    rows = []
    for clip in clips:
        predicted, measured = _differences(found, clip)
        rows.append(
            [
                clip,
                _sum(found, clip, "entropy/budget_removed_low", -1),
                _sum(found, clip, "entropy/budget_removed_high", -1),
                _sum(found, clip, "entropy/clip_low_contribution", 1),
                _sum(found, clip, "entropy/clip_high_contribution", -1),
                estimate(predicted, 4),
                estimate(measured, 4),
                agreement(predicted, measured),
                mean(over_seeds(found.per_seed(clip, step_correlation)), 2),
            ]
        )
    heads = ["rate times, summed", "clip-low did", "clip-high did", "CL", "−CH", "predicted less coin"]
    return table([*heads, "measured less coin", "signs", "correlation of steps"], rows)


def prediction_words(found: Results, clips: Sequence[str]) -> str:
    """How well, over all clips."""
    task = found.facts.config["data.train.task"]
    signs: dict[str, list[str]] = {}
    for clip in clips:
        signs.setdefault(agreement(*_differences(found, clip)), []).append(clip)
    told = {"agree": "has the sign of what was measured", "opposite": "has the opposite sign", "open": "leaves it open"}
    parts = [f"for {listed(names)} it {told[word]}" for word, names in sorted(signs.items())]
    pairs = {}
    for clip in clips:
        ours, coin = (predicted_sum(found, name) for name in (clip, f"{clip}-coin"))
        changed, by_coin = (found.per_seed(name, measured_change) for name in (clip, f"{clip}-coin"))
        for seed in ours.keys() & coin.keys() & changed.keys() & by_coin.keys():
            pairs[clip, seed] = (ours[seed] - coin[seed], changed[seed] - by_coin[seed])
    settings = [name for clip in clips for name in (clip, f"{clip}-coin")]
    return (
        f"On {task} the predicted difference between clip and coin is decided by its interval or not, as the measured "
        f"one: {'; '.join(parts)}. Over the {len(pairs)} pairs of runs the two differences have a correlation of "
        f"{plain(correlation(pairs), 2)}. Measured changes of a step are {short(size_ratio(found, settings))} times as "
        "large as predicted ones (root mean squares): that is Adam's size of a step, not an error of the sign."
    )


def agreement(predicted: SeedMean | None, measured: SeedMean | None) -> str:
    """ "agree" or "opposite" where both intervals exclude 0, else "open"."""
    if predicted is None or measured is None or not (predicted.excludes_zero and measured.excludes_zero):
        return "open"
    return "agree" if (predicted.value > 0) == (measured.value > 0) else "opposite"


def _differences(found: Results, clip: str) -> tuple[SeedMean | None, SeedMean | None]:
    """(predicted, measured) change of a clip's entropy less that of its coin's, nats per token."""
    predicted = difference(predicted_sum(found, clip), predicted_sum(found, f"{clip}-coin"))
    measured = difference(found.per_seed(clip, measured_change), found.per_seed(f"{clip}-coin", measured_change))
    return predicted, measured


def _sum(found: Results, clip: str, metric: str, sign: int) -> str:
    sums = predicted_sum(found, clip, metric, sign)
    return estimate(over_seeds(sums), 4) if any(sums.values()) else "–"
