"""Whether a curve over a run has an intended shape: lines between given knots, turning points, envelopes. Pure.

S = seeds, K = steps, P = phases. Places are shares of the run that are done, 0 to 1, so nothing depends on how many
steps a run has. Slopes are in the curve's unit per whole run.

A phase rises or falls where the 95 % interval of its slope over seeds (Student's t) excludes 0. A curve has a shape
where every phase goes the way it should and the lines explain at least half of the mean curve's variance; it has not
where a phase goes the other way; else the question is open, always so with one seed. How often noise passes for a
shape, and a shape for none, `shares_of_noise` measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megarl.ablation.seeds import LEVEL, SeedMean, mean_over_seeds, t_quantile

Values = NDArray[np.float64]
Answer = Literal["yes", "no", "open"]

LEAST_EXPLAINED = 0.5
"""Of the mean curve's variance, by the lines of a shape that it is said to have."""
SWING = 0.1
"""A turning point counts where the curve has come back by this much; of a curve relative to its start."""
SMOOTHED_SHARE = 0.1
"""Of the run: the window whose mean is looked at for turning points."""
PARTS = 4
"""Of the run, from whose largest values the envelope's slope is taken."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape of straight phases."""

    name: str
    knots: tuple[float, ...]
    """Where one phase ends and the next begins, shares of the run."""
    signs: tuple[int, ...]
    """Of the slopes, one more than knots: 1 rises, -1 falls."""


@dataclass(frozen=True, kw_only=True)
class ShapeFound:
    """What runs say of a shape."""

    slopes: tuple[SeedMean, ...]
    """By phase."""
    answer: Answer
    explained: float
    """Share of the mean curve's variance that lines between the knots explain."""
    explained_straight: float
    """Share that one straight line explains."""


def find_shape(places_K: Values, curves_SK: Values, shape: Shape) -> ShapeFound:
    """Fit every seed's curve, continuous at the knots, and judge the slopes."""
    slopes_SP = phase_slopes(places_K, curves_SK, shape.knots)
    slopes = tuple(mean_over_seeds(column.tolist()) for column in slopes_SP.T)
    mean_K = curves_SK.mean(axis=0)
    explained = float(explained_share(places_K, mean_K, shape.knots))
    return ShapeFound(
        slopes=slopes,
        answer=_judge_slopes(slopes, shape.signs, explained),
        explained=explained,
        explained_straight=float(explained_share(places_K, mean_K, ())),
    )


def _judge_slopes(slopes: Sequence[SeedMean], signs: Sequence[int], explained: float) -> Answer:
    clear = [one.excludes_zero for one in slopes]
    right = [one.value * sign > 0 for one, sign in zip(slopes, signs, strict=True)]
    if any(is_clear and not is_right for is_clear, is_right in zip(clear, right, strict=True)):
        return "no"
    return "yes" if all(clear) and explained >= LEAST_EXPLAINED else "open"


def phase_slopes(places_K: Values, curves_SK: Values, knots: Sequence[float]) -> Values:
    """[..., P] of [..., K]: least squares of lines that meet at the knots.

    ValueError where a phase has fewer than two of the places: its slope would be anything."""
    return curves_SK @ _fitting(places_K, knots)[1:].T


def explained_share(places_K: Values, curves_XK: Values, knots: Sequence[float]) -> Values:
    """Of each curve's variance around its mean, 0 to 1; 1 of a constant curve."""
    fits_XK = curves_XK @ (_ramps(places_K, knots) @ _fitting(places_K, knots)).T
    total_X = ((curves_XK - curves_XK.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    left_X = ((curves_XK - fits_XK) ** 2).sum(axis=-1)
    moves_X = total_X > 1e-24 * (curves_XK**2).sum(axis=-1)
    return np.where(moves_X, 1.0 - left_X / np.where(moves_X, total_X, 1.0), 1.0)


def _fitting(places_K: Values, knots: Sequence[float]) -> Values:
    """[1 + P, K]: a curve to the value at 0 and the slopes."""
    ends = (float(places_K[0]) - 1e-9, *knots, float(places_K[-1]) + 1e-9)
    for begin, end in pairwise(ends):
        inside = int(((places_K >= begin) & (places_K <= end)).sum())
        if inside < 2:
            raise ValueError(
                f"a phase from {begin:.2f} to {end:.2f} of the run has {inside} of {len(places_K)} steps; expected 2"
            )
    return np.linalg.pinv(_ramps(places_K, knots))


def _ramps(places_K: Values, knots: Sequence[float]) -> Values:
    """[K, 1 + P]: 1, then how far each place is into each phase."""
    begins, ends = (0.0, *knots), (*knots, np.inf)
    columns = [np.clip(places_K, begin, end) - begin for begin, end in zip(begins, ends, strict=True)]
    return np.stack([np.ones_like(places_K), *columns], axis=1)


@dataclass(frozen=True, kw_only=True)
class OscillationFound:
    """What runs say of a decay that oscillates."""

    turns: tuple[int, ...]
    """By seed, of the smoothed curve."""
    envelope: SeedMean
    """Slope of the line through the largest value of each quarter of the run, per run."""
    answer: Answer


def find_oscillation(curves_SK: Values) -> OscillationFound:
    """At least two turning points in every seed, and an envelope that falls: yes. None with two, or an envelope that
    rises: no. Of one seed: open."""
    turns_S = count_turns(smooth(curves_SK), SWING)
    envelope = mean_over_seeds(envelope_slopes(curves_SK).tolist())
    falls, rises = (envelope.excludes_zero and sign * envelope.value > 0 for sign in (-1, 1))
    answer: Answer = "open"
    if len(turns_S) < 2:
        answer = "open"
    elif rises or not (turns_S >= 2).any():
        answer = "no"
    elif falls and (turns_S >= 2).all():
        answer = "yes"
    return OscillationFound(turns=tuple(turns_S.tolist()), envelope=envelope, answer=answer)


def smooth(curves_XK: Values, share: float = SMOOTHED_SHARE) -> Values:
    """Mean over a window of about `share` of the steps, odd, at least 3; shorter at the ends."""
    steps = curves_XK.shape[-1]
    half = max(1, round(share * steps / 2))
    sums = np.concatenate([np.zeros((*curves_XK.shape[:-1], 1)), curves_XK.cumsum(axis=-1)], axis=-1)
    at = np.arange(steps)
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, steps)
    return (sums[..., last] - sums[..., first]) / (last - first)


def count_turns(curves_XK: Values, swing: float) -> NDArray[np.int64]:
    """How often each curve turns: an extreme counts once the curve has come back from it by `swing`, so a ripple that
    is smaller counts nothing; where the curve begins is no turning point."""
    going = np.zeros(curves_XK.shape[:-1], dtype=np.int64)
    turns = np.zeros_like(going)
    high, low = curves_XK[..., 0].copy(), curves_XK[..., 0].copy()
    for at in range(1, curves_XK.shape[-1]):
        now = curves_XK[..., at]
        high, low = np.maximum(high, now), np.minimum(low, now)
        for way in (-1, 1):
            came_back = (high - now if way < 0 else now - low) >= swing
            changed = came_back & (going != way)
            turns += changed & (going != 0)
            going = np.where(changed, way, going)
            high, low = np.where(changed, now, high), np.where(changed, now, low)
    return turns


def envelope_slopes(curves_XK: Values) -> Values:
    """By curve, per run: of the largest values of `PARTS` equal parts of the steps, by least squares.

    ValueError where there are fewer steps than parts."""
    steps = curves_XK.shape[-1]
    if steps < PARTS:
        raise ValueError(f"an envelope of {PARTS} parts needs as many steps, found {steps}")
    tops = np.stack([part.max(axis=-1) for part in np.array_split(curves_XK, PARTS, axis=-1)], axis=-1)
    places = (np.arange(PARTS) + 0.5) / PARTS
    centred = places - places.mean()
    return np.asarray(tops @ centred / (centred**2).sum())


Answers = NDArray[np.int8]
"""1: yes, -1: no, 0: open."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of many sets of curves, the shares that are found to have a shape, and not to have it."""

    yes: float
    no: float


@dataclass(frozen=True, kw_only=True)
class NoiseShares:
    """What is answered of curves without a shape, and with one."""

    wandering: Found
    """Random walks."""
    scattered: Found
    """Independent values around a constant."""
    with_shape: tuple[tuple[float, Found], ...]
    """(height, answers) of the shape itself on random walks."""


def shares_of_noise(
    judge: Callable[[Values], Answers],
    shape_K: Values,
    *,
    seeds: int,
    step_deviation: float,
    heights: Sequence[float],
    trend_K: Values | float = 0.0,
    trials: int = 2000,
) -> NoiseShares:
    """judge: [trials, seeds, steps] to what is answered of each. shape_K: of height 1. step_deviation: of one step's
    change. trend_K: under all of them. The same numbers on every call."""
    draws = np.random.default_rng(0).standard_normal((trials, seeds, len(shape_K))) * step_deviation
    walks = draws.cumsum(axis=-1)

    def share(curves: Values) -> Found:
        answers = judge(curves + trend_K)
        return Found(yes=float((answers > 0).mean()), no=float((answers < 0).mean()))

    return NoiseShares(
        wandering=share(walks),
        scattered=share(draws / np.sqrt(2)),  # the change between two of them has the deviation
        with_shape=tuple((height, share(walks + height * shape_K)) for height in heights),
    )


def judge_slopes_of_many(places_K: Values, curves_NSK: Values, *, shape: Shape) -> Answers:
    """[N] of [N, S, K]: what `find_shape` would answer."""
    slopes_NSP = phase_slopes(places_K, curves_NSK, shape.knots)
    if slopes_NSP.shape[1] < 2:
        return np.zeros(len(slopes_NSP), dtype=np.int8)
    rightly_NP = slopes_NSP.mean(axis=1) * np.array(shape.signs)
    half_NP = _half_width(slopes_NSP)
    explained_N = explained_share(places_K, curves_NSK.mean(axis=1), shape.knots)
    yes_N = (rightly_NP > half_NP).all(axis=-1) & (explained_N >= LEAST_EXPLAINED)
    return yes_N.astype(np.int8) - (rightly_NP < -half_NP).any(axis=-1)


def judge_oscillation_of_many(curves_NSK: Values) -> Answers:
    """[N] of [N, S, K]: what `find_oscillation` would answer."""
    if curves_NSK.shape[1] < 2:
        return np.zeros(len(curves_NSK), dtype=np.int8)
    turn_NS = count_turns(smooth(curves_NSK), SWING) >= 2
    slopes_NS = envelope_slopes(curves_NSK)
    half_N, mean_N = _half_width(slopes_NS), slopes_NS.mean(axis=1)
    yes_N = turn_NS.all(axis=1) & (mean_N < -half_N)
    return yes_N.astype(np.int8) - (~turn_NS.any(axis=1) | (mean_N > half_N))


def _half_width(values_NSX: Values) -> Values:
    """[N, ...] of [N, S, ...]: of Student's interval over the S seeds."""
    seeds = values_NSX.shape[1]
    return np.asarray(t_quantile(seeds - 1, LEVEL) * values_NSX.std(axis=1, ddof=1) / np.sqrt(seeds))
