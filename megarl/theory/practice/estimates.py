"""Numbers of a setting over its seeds, from the sums of its runs."""

import math
from collections.abc import Callable

from megarl.ablation.seeds import SeedMean, mean_over_seeds
from megarl.theory.practice.numbers import Practice, RunNumbers


def of_ratio(practice: Practice, setting: str, key: str, above: str, below: str) -> SeedMean | None:
    """Mean over seeds of the ratio of two sums of "tokens"; of a group over a seed's settings together."""
    return _of_sums(practice, setting, lambda run: (run.get("tokens", key, above), run.get("tokens", key, below)))


def change_of(practice: Practice, setting: str, key: str, *, negative: bool) -> SeedMean | None:
    """Mean change of a set's tokens' own entropy since the step began, nats: of those with N - Q < 0, or the others."""

    def sums(run: RunNumbers) -> tuple[float, float]:
        below = run.get("tokens", key, "negative")
        count = below if negative else run.get("tokens", key, "inside") - below
        return run.get("tokens", key, "change_negative" if negative else "change_other"), count

    return _of_sums(practice, setting, sums)


def _of_sums(practice: Practice, setting: str, sums_of: Callable[[RunNumbers], tuple[float, float]]) -> SeedMean | None:
    """None where no run has both."""
    members = practice.members(setting)
    sums: dict[int, list[float]] = {}
    for run in practice.runs:
        above, below = sums_of(run)
        if run.setting in members and math.isfinite(above) and math.isfinite(below):
            pair = sums.setdefault(run.seed, [0.0, 0.0])
            pair[0] += above
            pair[1] += below
    values = [above / below for above, below in sums.values() if below]
    return mean_over_seeds(values) if values else None


def shown(
    estimate: SeedMean | None, *, scale: float = 1.0, digits: int = 1, sign: bool = False, of: int | None = None
) -> str:
    """Mean and half of the interval; without one where there is one run. of: seeds that the row has; "[2]" follows a
    number of fewer."""
    if estimate is None:
        return "-"
    value = round(scale * estimate.value, digits) + 0.0  # no "-0.000"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    text += "" if estimate.half_width is None else f" ± {scale * estimate.half_width:.{digits}f}"
    return text if of is None or estimate.n == of else f"{text} [{estimate.n}]"
