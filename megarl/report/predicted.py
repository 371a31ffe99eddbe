"""The entropy change that the budget predicts, against the one that was measured.

Of step t: predicted is the sum over its updates of learning rate times entropy/budget; measured is the entropy before
the updates of step t + 1 less that before those of step t, each over the responses that were sampled then. The first
order is that of plain gradient steps, and much of what is measured is none of it: all predictions of a figure have one
factor s that gives them the size of what was measured. Signs and the correlation have none of it.
"""

import math
from collections.abc import Sequence

import numpy as np

from megarl.report.figure import Cloud, ScatterFigure, Values
from megarl.report.groups import Group
from megarl.report.run_data import RunData

MOST_POINTS = 400
"""Of a group; of more every n-th is drawn. The correlation is of all."""


def entropy_changes(run: RunData) -> tuple[Values, Values]:
    """(predicted, measured) of the steps that have both, predictions as they come, without s."""
    name = "actor/old_entropy" if "actor/old_entropy" in run else "actor/entropy"
    steps, entropy = run.series(name)
    if len(steps) < 2:
        return np.empty(0), np.empty(0)
    change = dict(zip(steps[:-1].tolist(), np.diff(entropy), strict=True))
    follows = np.diff(steps) == 1
    predicted = _predictions(run)
    pairs = [
        (predicted[step], change[step])
        for step, has_next in zip(steps[:-1].tolist(), follows, strict=True)
        if has_next and step in predicted and math.isfinite(change[step])
    ]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _predictions(run: RunData) -> dict[float, float]:
    """By step the sum over its updates; from the step's means where updates.jsonl lacks it, or one of its updates."""
    train = run.config.get("train", {})
    per_step = train.get("prompts_per_step", 0) * train.get("samples_per_prompt", 0)
    updates = per_step / train["mini_batch_responses"] if per_step and train.get("mini_batch_responses") else None
    shares: dict[float, list[float]] = {}
    for update in run.read_updates():
        rate, budget = update.get("actor/lr"), update.get("entropy/budget")
        if rate is not None and budget is not None:
            shares.setdefault(float(update["step"]), []).append(rate * budget)
    sums = {step: sum(found) for step, found in shares.items() if updates is None or len(found) == updates}
    steps, budgets = run.series("entropy/budget")
    _, rates = run.series("actor/lr")
    for step, budget, rate in zip(steps, budgets, rates, strict=False):
        if math.isfinite(budget) and math.isfinite(rate):
            sums.setdefault(float(step), (updates or 1.0) * rate * budget)
    return sums


def scatter_figure(groups: Sequence[Group], *, one_run: bool = False) -> ScatterFigure | None:
    """None where no step has a prediction and a measured change."""
    found = []
    for group in groups:
        pairs = [entropy_changes(run) for run in group.runs]
        predicted, measured = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        if len(predicted):
            found.append((group, predicted, measured))
    if not found:
        return None
    every = [np.concatenate([one[side] for one in found]) for side in (1, 2)]
    sizes = [math.sqrt(float((values**2).mean())) for values in every]
    factor = sizes[1] / sizes[0] if sizes[0] else 1.0
    clouds = tuple(_cloud(group, factor * p, m, one_run=one_run) for group, p, m in found)
    correlation = f"; correlation {clouds[0].correlation:+.2f}" if one_run else ""
    return ScatterFigure(
        key="predicted_change",
        title="Entropy change: predicted and measured",
        subtitle=f"a point per step; dashed: equal. Predictions × {factor:.3g}, for one size{correlation}",
        x_title=f"predicted: rate × budget × {factor:.3g}, nats",
        y_title="measured by the next step, nats",
        clouds=clouds,
    )


def correlate(first: Values, second: Values) -> float:
    """Pearson's, of pairs; NaN of fewer than three, or where one of both does not move."""
    moves = len(first) > 2 and float(np.ptp(first)) > 0 and float(np.ptp(second)) > 0
    return float(np.corrcoef(first, second)[0, 1]) if moves else math.nan


def _cloud(group: Group, x: Values, y: Values, *, one_run: bool) -> Cloud:
    correlation = correlate(x, y)
    every = math.ceil(len(x) / MOST_POINTS)
    return Cloud(
        label=f"{'a step' if one_run else group.label}: correlation {correlation:+.2f} over {len(x)} steps",
        x=x[::every],
        y=y[::every],
        colour=group.colour,
        group=None if one_run else group.index,
        correlation=correlation,
        num_points=len(x),
    )
