"""How well an entropy follows a target, and what the bounds' end and the prediction have to do with it. Pure.

K = steps, U = updates of one run in order. An entropy is that after a step, so a target for the end of the step is what
it is held against; errors are relative to the target.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

SETTLING = 0.2
"""Share of the run that is left out of the errors: the first steps are the way to the target."""
NEAR = 0.1
"""Relative error up to which a step counts as at the target."""
AT_END = 1e-9
"""A knob this close to 0 or 1 is at the end of its range."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Of one run."""

    rms: float
    """Root mean square of the relative errors after the settling steps."""
    largest: float
    """Largest size among them."""
    bias: float
    """Their mean; negative: below the target."""
    share_near: float
    """Share of those steps at the target."""
    reached: int | None
    """First step after which every error is small; None: the last is not."""


def hold_of(steps_K: Values, errors_K: Values, *, total_steps: int) -> Held:
    """errors: relative, of the steps; ValueError where none is after the settling steps."""
    after_K = errors_K[steps_K > settling_steps(total_steps)]
    if not len(after_K):
        raise ValueError(f"no error after step {settling_steps(total_steps)} of {total_steps}; found {len(errors_K)}")
    far = np.flatnonzero(np.abs(errors_K) > NEAR)
    next_at = 0 if not len(far) else int(far[-1]) + 1
    return Held(
        rms=float(np.sqrt((after_K**2).mean())),
        largest=float(np.abs(after_K).max()),
        bias=float(after_K.mean()),
        share_near=float((np.abs(after_K) <= NEAR).mean()),
        reached=None if next_at == len(steps_K) else int(steps_K[next_at]),
    )


def settling_steps(total_steps: int) -> int:
    """The last step that is left out."""
    return math.ceil(SETTLING * total_steps)


def relative_errors(before_K: Values, target_K: Values) -> Values:
    """[K - 1]: before_K has the entropy before each of consecutive steps, so that after a step is the next one's; the
    last step's is not known."""
    return before_K[1:] / target_K[:-1] - 1.0


@dataclass(frozen=True, kw_only=True)
class LoopUpdates:
    """What the loop has logged of one run's updates, in their order."""

    step_U: NDArray[np.int64]
    knob_U: Values
    wanted_U: Values
    predicted_U: Values
    measured_U: Values
    """NaN where an update had no budget: every advantage was 0."""
    entropy_U: Values
    """Before the update, as the loop estimates it; of a step's first it is the step's."""

    @property
    def steers_U(self) -> NDArray[np.bool_]:
        """Updates that are not the first of their step: there every ratio is 1, and no bound drops anything."""
        return np.concatenate([[False], self.step_U[1:] == self.step_U[:-1]])


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How often the bounds could not give what was asked for, of the updates that steer."""

    at_raising_end: float
    """Share with the knob at 1."""
    at_lowering_end: float
    """Share with the knob at 0."""
    short_of_raise: float
    """Share in which what was predicted is below what was wanted by more than the band."""
    short_of_fall: float
    """Share in which it is above by more than the band."""
    shortfall: float
    """Mean of wanted less predicted."""
    pass_differs: float
    """Largest difference of what the update's own pass has found from what was predicted, of all updates."""
    num_updates: int


def reach_of(runs: Sequence[LoopUpdates], *, band: float) -> Reach:
    """Over all updates of the runs together. ValueError where none steers."""
    steers = [run.steers_U for run in runs]
    knob, wanted, predicted = (
        np.concatenate([getattr(run, name)[some] for run, some in zip(runs, steers, strict=True)])
        for name in ("knob_U", "wanted_U", "predicted_U")
    )
    if not len(knob):
        raise ValueError("no update steers: every step has one update")
    differences = np.concatenate([np.abs(run.measured_U - run.predicted_U) for run in runs])
    known = differences[np.isfinite(differences)]
    return Reach(
        at_raising_end=float((knob >= 1 - AT_END).mean()),
        at_lowering_end=float((knob <= AT_END).mean()),
        short_of_raise=float((wanted - predicted > band).mean()),
        short_of_fall=float((predicted - wanted > band).mean()),
        shortfall=float((wanted - predicted).mean()),
        pass_differs=float(known.max()) if len(known) else 0.0,
        num_updates=len(knob),
    )


@dataclass(frozen=True, kw_only=True)
class ChangeFit:
    """Measured change of the entropy over what was predicted, by least squares of one run."""

    slope: float
    """Nats per unit of predicted share."""
    change_at_zero: float
    """Change where the prediction is 0: what the first order does not see."""
    correlation: float
    signs_agree: float
    """Share of the pairs with one sign."""
    pairs: int


def fit_change(predicted_X: Values, change_X: Values) -> ChangeFit | None:
    """None where there are fewer than three pairs, or either does not move."""
    if len(predicted_X) < 3 or np.ptp(predicted_X) == 0 or np.ptp(change_X) == 0:
        return None
    slope, at_zero = np.polyfit(predicted_X, change_X, 1)
    return ChangeFit(
        slope=float(slope),
        change_at_zero=float(at_zero),
        correlation=float(np.corrcoef(predicted_X, change_X)[0, 1]),
        signs_agree=float((np.sign(predicted_X) == np.sign(change_X)).mean()),
        pairs=len(predicted_X),
    )


def changes_of_updates(run: LoopUpdates, predicted_U: Values) -> tuple[Values, Values]:
    """(sum of the predictions since the step began, change of the estimate since then) of the updates that are followed
    by one of the same step; of each the mean over all steps at the same place in the step is taken off.

    The change is not from the update's own estimate: that is of one mini-batch, and the loop asks for less where it is
    high by chance, after which it falls without the update's doing. A step's first estimate has no such chance: there
    no token has moved. What happens in every step alike is no answer to a prediction, so the means go.
    """
    at = np.flatnonzero(run.step_U[1:] == run.step_U[:-1])
    number = np.arange(len(run.step_U))
    begin = np.maximum.accumulate(np.where(run.steers_U, 0, number))[at]
    sums = np.concatenate([[0.0], np.cumsum(predicted_U)])
    place = at - begin
    change = run.entropy_U[at + 1] - run.entropy_U[begin]
    return _less_means(sums[at + 1] - sums[begin], place), _less_means(change, place)


def _less_means(values_X: Values, group_X: NDArray[np.int64]) -> Values:
    counts = np.bincount(group_X)
    return values_X - (np.bincount(group_X, weights=values_X) / np.maximum(counts, 1))[group_X]


def changes_of_steps(run: LoopUpdates) -> tuple[Values, Values]:
    """(mean prediction, change from a step's beginning to the next one's) of steps that are followed by the next."""
    steps, first, counts = np.unique(run.step_U, return_index=True, return_counts=True)
    mean = np.add.reduceat(run.predicted_U, first) / counts if len(first) else np.empty(0)
    follows = np.diff(steps) == 1
    return mean[:-1][follows], np.diff(run.entropy_U[first])[follows]


def estimate_bias(run: LoopUpdates) -> float | None:
    """Mean of the loop's estimate before a step's last update less the entropy that the next step begins with, nats;
    None: no step is followed by the next. The estimate is of tokens that the step has not trained on yet, so it can be
    off."""
    steps, first = np.unique(run.step_U, return_index=True)
    follows = np.diff(steps) == 1
    off = (run.entropy_U[first[1:] - 1] - run.entropy_U[first[1:]])[follows]
    return float(off.mean()) if len(off) else None


def averaged(values_U: Values, beta: float) -> Values:
    """What an optimizer with this momentum steps along when its gradients are the values: the moving average, corrected
    for its beginning at 0."""
    found, state = np.empty_like(values_U), 0.0
    for at, value in enumerate(values_U):
        state = beta * state + (1.0 - beta) * value
        found[at] = state / (1.0 - beta ** (at + 1))
    return found
