"""Settings compared where their entropies are equal, not where their steps are.

A run's way is its entropy over its steps, straight between them. Where it has a level more than once, the last time
counts: the most training that ends with that entropy. What a step measures belongs to the entropy before its updates,
of the weights that sampled it; an evaluation to the entropy after them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megarl.ablation.seeds import SeedMean, mean_over_seeds, paired_difference
from megarl.theory.practice.numbers import Practice, RunNumbers
from megarl.theory.practice.reading import ENTROPY_AFTER

STEP = "step"
_NUM_LEVELS = 5
_BEFORE = "actor/old_entropy"


@dataclass(frozen=True, kw_only=True)
class Level:
    """An entropy, and who has it."""

    entropy: float
    settings: tuple[str, ...]
    """Those of which all runs come to it, in order."""
    some: tuple[str, ...]
    """Those of which some do."""
    never: tuple[str, ...]


def ranges(practice: Practice) -> dict[str, tuple[float, float]]:
    """By setting the entropies, lowest and highest, that ALL its runs come to; left out where there are none."""
    found = {}
    for setting in practice.settings:
        ways = [way for run in practice.runs if run.setting == setting and (way := _way(run, STEP))]
        if ways:
            low = max(min(entropy for entropy, _ in way) for way in ways)
            high = min(max(entropy for entropy, _ in way) for way in ways)
            if low < high:
                found[setting] = (low, high)
    return found


def common_range(practice: Practice) -> tuple[float, float] | None:
    """The entropies that all runs of all settings come to; None: there is none."""
    every = ranges(practice)
    if len(every) < len(practice.settings):
        return None
    low, high = max(low for low, _ in every.values()), min(high for _, high in every.values())
    return (low, high) if low < high else None


def choose_levels(practice: Practice) -> list[Level]:
    """From high to low: five evenly over all that some setting has; where all have none of them, the middle of what all
    have."""
    every = ranges(practice)
    if not every:
        return []
    low, high = min(low for low, _ in every.values()), max(high for _, high in every.values())
    entropies = [float(one) for one in np.linspace(low, high, _NUM_LEVELS + 2)[1:-1]]
    shared = common_range(practice)
    if shared is not None and not any(shared[0] <= one <= shared[1] for one in entropies):
        entropies.append(sum(shared) / 2)
    return [_level(practice, entropy) for entropy in sorted(entropies, reverse=True)]


def _level(practice: Practice, entropy: float) -> Level:
    counts = {
        setting: [value_at(run, STEP, entropy) is not None for run in practice.runs if run.setting == setting]
        for setting in practice.settings
    }
    return Level(
        entropy=entropy,
        settings=tuple(setting for setting, came in counts.items() if all(came)),
        some=tuple(setting for setting, came in counts.items() if any(came) and not all(came)),
        never=tuple(setting for setting, came in counts.items() if not any(came)),
    )


def value_at(run: RunNumbers, metric: str, entropy: float) -> float | None:
    """The metric where the run has this entropy, straight between neighbouring steps; None: it never has."""
    way = _way(run, metric)
    for (before, value), (after, next_value) in reversed(list(pairwise(way))):
        if min(before, after) <= entropy <= max(before, after):
            share = 1.0 if before == after else (entropy - before) / (after - before)
            return value + share * (next_value - value)
    return None


def _way(run: RunNumbers, metric: str) -> list[tuple[float, float]]:
    """(entropy, value) by step."""
    of_entropy = ENTROPY_AFTER if metric.startswith("eval/") else _BEFORE
    found: dict[int, dict[str, float]] = {}
    for (part, key, name), value in run.values.items():
        if part == "series" and name in (of_entropy, metric):
            found.setdefault(int(key), {})[name] = value
    if metric == STEP:
        return [(row[of_entropy], float(step)) for step, row in sorted(found.items()) if of_entropy in row]
    return [(row[of_entropy], row[metric]) for _, row in sorted(found.items()) if len(row) == 2]


def estimate_at(practice: Practice, setting: str, metric: str, entropy: float) -> SeedMean | None:
    """Over the setting's runs that have it."""
    values = [*_by_seed(practice, setting, metric, entropy).values()]
    return mean_over_seeds(values) if values else None


def difference_at(practice: Practice, setting: str, control: str, metric: str, entropy: float) -> SeedMean | None:
    """Paired by seed."""
    return paired_difference(*(_by_seed(practice, one, metric, entropy) for one in (setting, control)))


def _by_seed(practice: Practice, setting: str, metric: str, entropy: float) -> dict[int, float]:
    found = {run.seed: value_at(run, metric, entropy) for run in practice.runs if run.setting == setting}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def evaluation_metrics(practice: Practice) -> list[str]:
    """mean@n of every benchmark, and pass@k with the largest k."""
    names = dict.fromkeys(name for run in practice.runs for part, _, name in run.values if part == "series")
    found: list[str] = []
    for benchmark in dict.fromkeys(name.rpartition("/")[0] for name in names if name.startswith("eval/")):
        found += [name for name in names if name.startswith(f"{benchmark}/mean@")]
        passed = [name for name in names if name.startswith(f"{benchmark}/pass@")]
        found += sorted(passed, key=_samples)[-1:]
    return found


def _samples(name: str) -> int:
    return int(name.rpartition("@")[2])


def has_series(practice: Practice, metrics: Sequence[str]) -> list[str]:
    """Those that some run has."""
    names = {name for run in practice.runs for part, _, name in run.values if part == "series"}
    return [metric for metric in metrics if metric in names]
