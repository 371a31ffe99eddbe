"""Numbers of FlexEC's schedules: whether each one's entropy has the shape it is to have, by `curve_shapes`' rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from megarl.report.seeds import on_common_steps
from results.control_words import config_of
from results.curve_shapes import (
    PARTS,
    NoiseShares,
    OscillationFound,
    Shape,
    ShapeFound,
    Values,
    find_oscillation,
    find_shape,
    judge_oscillation_of_many,
    judge_slopes_of_many,
    shares_of_noise,
)
from results.reading import Results

HEIGHTS = (0.1, 0.2, 0.4, 0.8)
"""Of shapes that noise is laid over, relative to the starting entropy."""
TRIALS = 2000
"""Sets of made-up curves."""
_WAVES = 3
"""Of the oscillating decay that noise is laid over."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A setting's entropy over that of its run's first step."""

    seeds: tuple[int, ...]
    places_K: Values
    """Share of the run that is done where the entropy was measured."""
    curves_SK: Values


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A schedule, what it is to do, and what its runs did."""

    setting: str
    intended: str
    found: ShapeFound | OscillationFound | None
    """None: it has too few steps in a phase."""
    beside: ShapeFound | None = None
    """The same of its difference to the control, seed by seed; None: not asked, or no seed is shared."""


def read_curves(results: Results, setting: str) -> Curves:
    """On the steps that all seeds have; KeyError without a finished run."""
    runs = results.runs[setting]
    steps, curves = on_common_steps([run.series("actor/entropy_over_start") for run in runs.values()])
    total = float(config_of(results, setting)["train.steps"])
    return Curves(seeds=tuple(runs), places_K=(steps - 1) / total, curves_SK=curves)


def shape_of(results: Results, setting: str) -> Shape | None:
    """What a schedule of straight phases is to do to the entropy; None: it has none."""
    config = config_of(results, setting)
    if config.get("objective.clip.kind") != "flexec":
        return None
    split = float(config["objective.clip.phase_split"])
    match config["objective.clip.schedule"]:
        case "id":
            return Shape(name="rise, fall", knots=(split,), signs=(1, -1))
        case "did":
            # The upper bound opens throughout the first phase; halfway it is halfway open.
            return Shape(name="fall, rise, fall", knots=(split / 2, split), signs=(-1, 1, -1))
        case "upper":
            return Shape(name="rise", knots=(), signs=(1,))
        case "lower":
            return Shape(name="fall", knots=(), signs=(-1,))
    return None


def oscillates(results: Results, setting: str) -> bool:
    """Whether it is to."""
    config = config_of(results, setting)
    return config.get("objective.clip.kind") == "flexec" and config.get("objective.clip.schedule") == "od"


def judge(results: Results, setting: str) -> Judged | None:
    """None: the setting's bounds are constant."""
    own = read_curves(results, setting)
    if oscillates(results, setting):
        enough = own.curves_SK.shape[1] >= PARTS
        return Judged(
            setting=setting, intended="falls in waves", found=find_oscillation(own.curves_SK) if enough else None
        )
    shape = shape_of(results, setting)
    if shape is None:
        return None
    return Judged(
        setting=setting,
        intended=shape.name,
        found=_shape_or_none(own.places_K, own.curves_SK, shape),
        beside=_beside(results, setting, own, shape),
    )


def _beside(results: Results, setting: str, own: Curves, shape: Shape) -> ShapeFound | None:
    control = results.control_of(setting)
    if control is None or not results.has(control):
        return None
    other = read_curves(results, control)
    shared = [seed for seed in own.seeds if seed in other.seeds]
    if not shared or len(own.places_K) != len(other.places_K):
        return None
    first, second = (one.curves_SK[[one.seeds.index(seed) for seed in shared]] for one in (own, other))
    return _shape_or_none(own.places_K, first - second, shape)


def _shape_or_none(places_K: Values, curves_SK: Values, shape: Shape) -> ShapeFound | None:
    return find_shape(places_K, curves_SK, shape) if _has_steps(places_K, shape) else None


def _has_steps(places_K: Values, shape: Shape) -> bool:
    """Whether every phase has the two steps that a slope needs."""
    ends = (0.0, *shape.knots, 1.0)
    return all(((places_K >= begin) & (places_K <= end)).sum() >= 2 for begin, end in pairwise(ends))


def noise_of_constants(results: Results, names: Sequence[str]) -> tuple[float, float] | None:
    """(deviation of a step's change of H/H0 around its mean, H/H0 that a run gains in all) under constant bounds; None:
    no setting has them."""
    changes, gained = [], []
    for name in names:
        if shape_of(results, name) is None and not oscillates(results, name):
            found = np.diff(read_curves(results, name).curves_SK)
            changes.append((found - found.mean()).ravel())
            gained.append(float(found.mean()) * (found.shape[-1] + 1))
    return (float(np.concatenate(changes).std()), float(np.mean(gained))) if changes else None


def noise_of(
    results: Results, names: Sequence[str], *, seeds: int, deviation: float, trend: float
) -> list[tuple[str, NoiseShares]]:
    """(shape in words, what the rule answers of noise of that deviation and trend) of every shape that a setting is to
    have; without those whose phases have too few steps."""
    found: dict[str, NoiseShares] = {}
    for name in names:
        places, shape = read_curves(results, name).places_K, shape_of(results, name)
        if shape is not None and _has_steps(places, shape):
            text = f"{shape.name}; knots {', '.join(f'{at:g}' for at in shape.knots)}"
            judge_many = partial(judge_slopes_of_many, places, shape=shape)
        elif oscillates(results, name) and len(places) >= PARTS:
            text, judge_many = "falls in waves", judge_oscillation_of_many
        else:
            continue
        if text not in found:
            found[text] = shares_of_noise(
                judge_many,
                _ideal(shape, places),
                seeds=seeds,
                step_deviation=deviation,
                heights=HEIGHTS,
                trend_K=trend * places,
                trials=TRIALS,
            )
    return list(found.items())


def _ideal(shape: Shape | None, places: Values) -> Values:
    """The shape, its largest less its smallest value 1; None: the decay in waves."""
    if shape is None:
        made = (1 - places) * 0.5 * (1 + np.cos(2 * np.pi * _WAVES * places))
    else:
        levels = np.concatenate([[0.0], np.cumsum(shape.signs)]).astype(np.float64)
        made = np.interp(places, [0.0, *shape.knots, 1.0], levels)
    return np.asarray((made - made.min()) / np.ptp(made))


def switches_of(results: Results, setting: str) -> list[int]:
    """How often the oscillating schedule of each run switched."""
    found = []
    for run in results.runs[setting].values():
        raising = run.series("control/flexec_raising")[1]
        found.append(int((np.diff(raising[np.isfinite(raising)]) != 0).sum()))
    return found
