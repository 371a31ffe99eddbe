"""Closed-loop clipping: what the loops' predictions say of the entropy that followed, in a table and in sentences."""

from collections.abc import Callable, Sequence

from megarl.ablation.seeds import SeedMean
from results.control_loop import Predicted, momentum_of, predictions
from results.holding import ChangeFit
from results.ran import table
from results.reading import Results, difference, over_seeds
from results.words import estimate, listed, mean


def prediction_table(results: Results, loops: Sequence[str]) -> str:
    """A row per loop; without loops nothing."""
    rows = []
    for name in loops:
        runs = predictions(results, name)
        row = [name]
        row += [
            estimate(_fits(runs, lambda one: one.updates, lambda fit: 1e3 * fit.slope), 2),
            mean(_fits(runs, lambda one: one.updates, lambda fit: fit.correlation), 2),
            mean(_fits(runs, lambda one: one.averaged, lambda fit: fit.correlation), 2),
            mean(_fits(runs, lambda one: one.steps, lambda fit: fit.correlation), 2),
            estimate(_fits(runs, lambda one: one.steps, lambda fit: 1e3 * fit.change_at_zero), 1),
            mean(_fits(runs, lambda one: one.steps, lambda fit: 100 * fit.signs_agree), 0),
            estimate(_biases(runs), 1, 1e3),
        ]
        rows.append(row)
    heads = ["loop", "slope", "r", "r, averaged", "step: r", "step: at 0", "step: signs %", "estimate off"]
    return table(heads, rows) if rows else ""


def _fits(
    runs: dict[int, Predicted],
    which: Callable[[Predicted], ChangeFit | None],
    number: Callable[[ChangeFit], float],
) -> SeedMean | None:
    return over_seeds({seed: number(fit) for seed, one in runs.items() if (fit := which(one)) is not None})


def _biases(runs: dict[int, Predicted]) -> SeedMean | None:
    return over_seeds({seed: one.estimate_bias for seed, one in runs.items() if one.estimate_bias is not None})


def prediction_said(results: Results, loops: Sequence[str]) -> list[str]:
    """Slope, momentum, and what is there at a prediction of 0: each by its interval."""
    if not loops:
        return []
    found = {name: predictions(results, name) for name in loops}
    slopes = {name: _fits(runs, lambda one: one.updates, lambda fit: fit.slope) for name, runs in found.items()}
    zero = {name: _fits(runs, lambda one: one.steps, lambda fit: fit.change_at_zero) for name, runs in found.items()}
    gains = {
        name: difference(
            {seed: one.averaged.correlation for seed, one in runs.items() if one.averaged},
            {seed: one.updates.correlation for seed, one in runs.items() if one.updates},
        )
        for name, runs in found.items()
    }
    beta = momentum_of(results, loops[0])
    return [
        _by_sign(
            slopes,
            "More predicted is more measured within a step of {}",
            "more predicted is less measured of {}",
            "whether more predicted is more measured is open of {}",
        ),
        _by_sign(
            gains,
            f"Averaged as Adam's momentum averages gradients (beta1 {beta:g}), the prediction goes better with the "
            "change of {}",
            "averaged it goes worse of {}",
            "whether averaging makes the prediction better is open of {}",
        ),
        _by_sign(
            zero,
            "where the mean prediction of a step is 0 the entropy rises all the same of {}",
            "where the mean prediction of a step is 0 the entropy falls all the same of {}",
            "whether the entropy moves where the mean prediction of a step is 0 is open of {}",
        ),
        _by_sign(
            {name: _biases(runs) for name, runs in found.items()},
            "before a step's last update the loop takes the entropy for higher than the next step finds it of {}",
            "before a step's last update the loop takes the entropy for lower than the next step finds it of {}",
            "whether the loop's estimate of the entropy is off is open of {}",
        ),
    ]


def _by_sign(found: dict[str, SeedMean | None], above: str, below: str, undecided: str) -> str:
    sides: dict[str, list[str]] = {above: [], below: [], undecided: []}
    for name, one in found.items():
        text = undecided if one is None or not one.excludes_zero else above if one.value > 0 else below
        sides[text].append(name)
    told = "; ".join(text.format(listed(names)) for text, names in sides.items() if names)
    return told[0].upper() + told[1:] + "."
