"""updates.jsonl as arrays: of every step what its K updates said, and what the first order makes of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megarl.report.figure import Values

SIDES = ("low", "high")
KEPT = (
    *("actor/lr", "entropy/budget", "actor/entropy"),
    *(f"entropy/clip_{side}_{what}" for side in SIDES for what in ("difference", "contribution")),
    *(f"entropy/budget_removed_{side}" for side in SIDES),
)
"""What is read of an update."""
PLAIN_EPS = 1.0
"""From this eps on Adam's root of the squared gradients is nothing beside it: a step is lr / eps along the gradient."""


@dataclass(frozen=True, kw_only=True)
class StepUpdates:
    """A step's updates in order; K values each, NaN where an update did not say."""

    values: Mapping[str, Values]
    rate: Values
    """Step size of each update: the learning rate; over eps where that makes the step."""
    plain: Values
    """First-order change of each update, step size * budget; no scale where Adam has one of its own."""
    momentum: Values
    """The same with the budget averaged as Adam averages gradients: decay beta1, corrected for its start."""

    @property
    def count(self) -> int:
        return len(self.plain)


def collect_updates(updates: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[int, StepUpdates]:
    """By step. updates: in the order in which they were made; a step whose updates are not 0, 1, 2, ... is left out, as
    what would be said of them is of others."""
    beta1, scale = _optimizer(config)
    found: dict[int, list[list[float]]] = {}
    places: dict[int, list[int]] = {}
    average = total_weight = 0.0
    for update in updates:
        values = [np.nan if (value := update.get(name)) is None else float(value) for name in KEPT]
        budget = values[KEPT.index("entropy/budget")]
        if np.isfinite(budget):
            average = beta1 * average + (1 - beta1) * budget
            total_weight = beta1 * total_weight + (1 - beta1)
        step = int(update["step"])
        found.setdefault(step, []).append([*values, average / total_weight if total_weight else np.nan])
        places.setdefault(step, []).append(int(update.get("update", len(places[step]))))
    return {
        step: _step(np.array(rows, dtype=np.float64), scale)
        for step, rows in found.items()
        if places[step] == list(range(len(rows)))
    }


def _step(rows_KN: Values, scale: float) -> StepUpdates:
    values = {name: rows_KN[:, index] for index, name in enumerate(KEPT)}
    rate = values["actor/lr"] * scale
    return StepUpdates(values=values, rate=rate, plain=rate * values["entropy/budget"], momentum=rate * rows_KN[:, -1])


def _optimizer(config: Mapping[str, Any]) -> tuple[float, float]:
    """(beta1, what a rate is multiplied by)."""
    optimizer = config.get("policy", {}).get("optimizer", {})
    eps = float(optimizer.get("eps", 0.0))
    return float(optimizer.get("beta1", 0.0)), 1 / eps if eps >= PLAIN_EPS else 1.0
