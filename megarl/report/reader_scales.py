"""How far the tints of the reader reach: what the strongest tint of each stands for, one scale for a whole page."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megarl.report.reader_payload import columns_of_row
from megarl.telemetry.rollouts import RolloutRow

QUANTILE = 0.99
"""Of the tokens' values: a single token far out would leave all others white."""


def tint_values(row: RolloutRow) -> dict[str, NDArray[np.float64]]:
    """What the tints show of each token, as the page computes it again. Without a trace: entropy and advantage alone.

    entropy: nats, under the weights of logp, or else of old_logp. ratio: log r. bound: how far the ratio is inside the
    bound of its advantage's side (> 0), or beyond it (< 0); not finite without an advantage or bound.
    """
    columns = {name: values.astype(np.float64) for name, values in columns_of_row(row).items()}
    if row.trace is None:
        constant = np.full(len(row.response_tokens), row.advantage, np.float64)
        return {"entropy": columns["old_entropy"], "advantage": constant}
    ratio, advantage = columns["ratio"], columns["token_advantage"]
    inside = np.where(advantage > 0, columns["high"] - ratio, ratio - columns["low"])
    with np.errstate(divide="ignore"):
        log_ratio = np.log(ratio)
    return {
        "entropy": columns["entropy"],
        "ratio": log_ratio,
        "advantage": advantage,
        "bound": np.where(advantage == 0, np.nan, inside),
    }


@dataclass(slots=True)
class Scales:
    """Collects what the tints have to reach."""

    _sizes: dict[str, list[NDArray[np.float64]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: RolloutRow) -> None:
        for name, values in tint_values(row).items():
            self._sizes[name].append(np.abs(values[np.isfinite(values)]))

    def reach(self) -> dict[str, float]:
        """By tint; 1 where no token has a value but 0, so that nothing is divided by it."""
        found = {name: np.concatenate(parts) for name, parts in self._sizes.items()}
        return {name: _reach(values) for name, values in found.items()}


def _reach(values: NDArray[np.float64]) -> float:
    largest = float(np.quantile(values, QUANTILE, method="higher")) if len(values) else 0.0
    return largest if largest > 1e-6 else 1.0
