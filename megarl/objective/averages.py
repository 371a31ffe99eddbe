"""Running means over a run that advantages follow: FADE's solve rate and GEPO's entropy thresholds.

Pure Python in double precision, on the driver; sums are exactly rounded, so the order of a step's responses does not
matter. What is measured in a step acts in it.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megarl.config.advantage import FocalAdvantage, GroupEntropy
from megarl.config.objective import ObjectiveConfig
from megarl.records import Floats
from megarl.telemetry.metrics import Metrics, declared
from megarl.telemetry.state import check_keys

_FIRST_SOLVE_RATE = 0.5


class AdvantageAverages:
    """Call `focal_power` and `attenuate` once per step each; they do nothing where the objective has no use for it."""

    def __init__(self, objective: ObjectiveConfig) -> None:
        advantage = objective.advantage
        self._focal = advantage if isinstance(advantage, FocalAdvantage) else None
        self._entropy = objective.shaping.group_entropy
        self._solve_rate = _FIRST_SOLVE_RATE
        self._thresholds: tuple[float, float] | None = None
        self._shown: dict[str, float] = {}

    def focal_power(self, rewards: Sequence[float]) -> float | None:
        """alpha of FADE (arXiv 2607.01490) after a step with these rewards; None without that advantage."""
        config = self._focal
        if config is None:
            return None
        if rewards:
            mean = min(max(math.fsum(rewards) / len(rewards), 0.0), 1.0)
            self._solve_rate += config.rate * (mean - self._solve_rate)
        p = self._solve_rate
        # At p = 0 the formula is infinite: nothing is solved yet.
        power = min(max(1.5 * (1.0 - p) / p, 1.0), config.largest) if p > 0 else config.largest
        self._shown["control/focal_power"] = power
        return power

    def attenuate(
        self, advantages: Sequence[float], group_ids: Sequence[int], behavior_logps: Sequence[Floats]
    ) -> list[float]:
        """The advantages of a step, smaller where GEPO (arXiv 2607.16850) says so.

        `behavior_logps`: of each response's tokens when they were sampled. A group without tokens has no entropy, and
        its advantages stay.
        """
        config = self._entropy
        entropies = _group_entropies(group_ids, behavior_logps) if config else {}
        if config is None or not entropies:
            return list(advantages)
        low, high = self._move_thresholds(config, list(entropies.values()))
        self._shown |= {"control/group_entropy_low": low, "control/group_entropy_high": high}
        return [
            advantage * _factor(config, advantage, is_low=entropy < low, is_high=entropy > high)
            for advantage, entropy in zip(
                advantages, (entropies.get(group, math.nan) for group in group_ids), strict=True
            )
        ]

    def metrics(self) -> Metrics:
        """What acted in the last step, under `control/`."""
        return declared(self._shown)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; empty where the objective has no use for it."""
        state: dict[str, Any] = {}
        if self._focal:
            state["solve_rate"] = self._solve_rate
        if self._entropy:
            state["thresholds"] = None if self._thresholds is None else list(self._thresholds)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s numbers. ValueError when it has other keys."""
        check_keys(state, self.state_dict(), what="averages")
        self._solve_rate = float(state.get("solve_rate", _FIRST_SOLVE_RATE))
        thresholds = state.get("thresholds")
        self._thresholds = None if thresholds is None else (float(thresholds[0]), float(thresholds[1]))

    def _move_thresholds(self, config: GroupEntropy, entropies: Sequence[float]) -> tuple[float, float]:
        mean = math.fsum(entropies) / len(entropies)
        deviation = math.sqrt(math.fsum((entropy - mean) ** 2 for entropy in entropies) / len(entropies))
        measured = mean - config.low_width * deviation, mean + config.high_width * deviation
        if self._thresholds is None:
            self._thresholds = measured
        else:
            low, high = (old + config.rate * (new - old) for old, new in zip(self._thresholds, measured, strict=True))
            self._thresholds = low, high
        return self._thresholds


def _group_entropies(group_ids: Sequence[int], behavior_logps: Sequence[Floats]) -> dict[int, float]:
    """-mean log p over the response tokens of each group that has any, nats."""
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for group, logp in zip(group_ids, behavior_logps, strict=True):
        parts[group] += logp.tolist()
    return {group: -math.fsum(logps) / len(logps) for group, logps in parts.items() if logps}


def _factor(config: GroupEntropy, advantage: float, *, is_low: bool, is_high: bool) -> float:
    if is_low and advantage > 0:
        return config.low_factor
    return config.high_factor if is_high and advantage < 0 else 1.0
