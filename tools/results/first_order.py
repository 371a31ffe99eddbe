"""What the budget predicts of a run's entropy, and what was measured.

The first order is that of plain gradient steps on a table of logits: an update's change is its rate times
entropy/budget. A run's prediction is the sum over the updates of all steps but the last, since what the last step did
was never measured; or over those of the first `steps`. Adam gives steps another size, so the sign and the correlation
are compared, not the size.
"""

import math

import numpy as np

from megarl.report.predicted import correlate, entropy_changes
from megarl.report.stored_runs import StoredRun
from results.reading import BySeed, Results

ENTROPY = "actor/old_entropy"


def predicted_sum(
    found: Results, setting: str, metric: str = "entropy/budget", *, factor: float = 1.0, steps: int | None = None
) -> BySeed:
    """Sum of rate times an update's metric, nats, of each seed. ValueError where updates are not stored."""
    return {seed: factor * _sum(found, setting, seed, metric, steps) for seed in found.runs[setting]}


def _sum(found: Results, setting: str, seed: int, metric: str, steps: int | None) -> float:
    rates = found.updates(setting, seed, "actor/lr")
    if not rates.size:
        raise ValueError(f"{found.path}: no updates are stored beside it; expected those of every run")
    values = found.updates(setting, seed, metric)
    return float(np.nansum((rates * values)[: len(rates) - 1 if steps is None else steps]))


def measured_change(run: StoredRun, steps: int | None = None) -> float | None:
    """Entropy before the last step's updates less that before the first's, nats per token; or after `steps`."""
    entropy = run.series(ENTROPY)[1]
    at = len(entropy) - 1 if steps is None else steps
    return float(entropy[at] - entropy[0]) if 0 < at < len(entropy) else None


def step_correlation(run: StoredRun) -> float | None:
    """Of the steps' predicted and measured changes; None: too few steps, or one does not move."""
    found = correlate(*entropy_changes(run))
    return None if math.isnan(found) else found


def step_slopes(found: Results, settings: list[str]) -> BySeed:
    """By seed s of the line measured = s predicted through 0, by least squares over the steps of all its runs."""
    both: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for setting in settings:
        for seed, run in found.runs[setting].items():
            both.setdefault(seed, []).append(entropy_changes(run))
    slopes: BySeed = {}
    for seed, pairs in both.items():
        predicted, measured = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        if squares := float(predicted @ predicted):
            slopes[seed] = float(predicted @ measured) / squares
    return slopes


def size_ratio(found: Results, settings: list[str]) -> float:
    """Root mean square of all steps' measured changes over that of the predicted ones; NaN where nothing is."""
    both = [entropy_changes(run) for setting in settings for run in found.runs[setting].values()]
    predicted, measured = (np.concatenate([pair[side] for pair in both]) for side in (0, 1))
    size = float(np.sqrt((predicted**2).mean())) if len(predicted) else 0.0
    return float(np.sqrt((measured**2).mean())) / size if size else math.nan
