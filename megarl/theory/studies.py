"""The studies of `megarl theory`: predicted against exact, over step sizes, bounds, samples and whole trainings.

Every exact change comes from the objective itself: its gradient by automatic differentiation, the step, the entropy
before and after. The prediction comes from the theorems' formulas alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.config.theory import TheoryConfig
from megarl.theory.monte_carlo import SlopeRow, measure_slope, random_pairs, sample_groups
from megarl.theory.multi_step import Trajectory, train
from megarl.theory.tabular import (
    RANDOM_SIGN,
    Bounds,
    clipped_surrogate,
    entropy,
    surrogate_gradient,
)
from megarl.theory.theorems import (
    ClipTerms,
    natural_gradient_step,
    natural_gradient_terms,
    policy_gradient_terms,
)

SCATTER_POINTS = 300
"""Pairs listed one by one."""
WORKED_DELTA = 0.025
"""eta c w of the counterexamples: eta 0.05 with A = +1 or -1."""

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One theorem at one learning rate; medians over the pairs."""

    theorem: str
    learning_rate: float
    predicted: float
    """|first-order change|."""
    exact: float
    """|exact change|."""
    remainder: float
    """|exact - predicted|."""
    order: float | None
    """log of the remainder's fall over log of the step's, from the row before: 2 where the prediction is the first
    order, 1 where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStudy:
    rows: list[StepRow]
    scatter_learning_rate: float
    scatter: list[dict[str, float | str]]
    """theorem, predicted, exact of single pairs."""
    gradient_error: float
    """Largest difference of the closed-form gradient to automatic differentiation."""


def study_steps(config: TheoryConfig, advance: Advance = lambda: None) -> StepStudy:
    """Both theorems, and Theorem 1's formula with averages under pi_old, which is not the first order."""
    pairs = config.pairs
    logits, old_logits = random_pairs(
        pairs.count, pairs.vocabulary, old_scale=pairs.old_scale, drift=pairs.drift, seed=config.seed
    )
    old, policy = old_logits.softmax(-1), logits.softmax(-1)
    bounds = Bounds(low=config.clip.low, high=config.clip.high)
    predictions = {
        "Theorem 1": policy_gradient_terms(policy, old, bounds),
        "Theorem 2": natural_gradient_terms(policy, old, bounds),
        "under pi_old": policy_gradient_terms(policy, old, bounds, measure=old),
    }
    gradient = _differentiate(logits, old, bounds)
    rows: list[StepRow] = []
    scatter: list[dict[str, float | str]] = []
    shown = config.learning_rates[len(config.learning_rates) // 2]
    for eta in config.learning_rates:
        delta = eta * RANDOM_SIGN.positive_mean
        changes = {
            "Theorem 1": entropy((logits + eta * gradient).softmax(-1)) - entropy(policy),
            "Theorem 2": entropy(natural_gradient_step(logits, old, bounds, delta)) - entropy(policy),
        }
        changes["under pi_old"] = changes["Theorem 1"]
        for theorem, terms in predictions.items():
            predicted, exact = terms.change(delta), changes[theorem]
            rows.append(_step_row(theorem, eta, predicted=predicted, exact=exact, earlier=rows))
            if eta == shown and theorem != "under pi_old":
                scatter += _points(theorem, predicted, exact)
        advance()
    closed = surrogate_gradient(policy, old, bounds, RANDOM_SIGN.positive_mean)
    return StepStudy(
        rows=rows,
        scatter_learning_rate=shown,
        scatter=scatter,
        gradient_error=(closed - gradient).abs().max().item(),
    )


def _differentiate(logits: Tensor, old: Tensor, bounds: Bounds) -> Tensor:
    """dJ/dtheta by automatic differentiation of the clipped objective itself."""
    leaf = logits.clone().requires_grad_()
    objective = clipped_surrogate(leaf.softmax(-1), old, bounds, RANDOM_SIGN).sum()
    (gradient,) = torch.autograd.grad(objective, leaf)
    return gradient


def _step_row(theorem: str, eta: float, *, predicted: Tensor, exact: Tensor, earlier: list[StepRow]) -> StepRow:
    remainder = (exact - predicted).abs().median().item()
    before = next((row for row in reversed(earlier) if row.theorem == theorem), None)
    order = None
    if before is not None and remainder > 0 and before.remainder > 0:
        order = math.log(before.remainder / remainder) / math.log(before.learning_rate / eta)
    return StepRow(
        theorem=theorem,
        learning_rate=eta,
        predicted=predicted.abs().median().item(),
        exact=exact.abs().median().item(),
        remainder=remainder,
        order=order,
    )


def _points(theorem: str, predicted: Tensor, exact: Tensor) -> list[dict[str, float | str]]:
    pairs = zip(predicted[:SCATTER_POINTS].tolist(), exact[:SCATTER_POINTS].tolist(), strict=True)
    return [{"theorem": theorem, "predicted": first, "exact": second} for first, second in pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One bound alone, the other off; means over the pairs. Changes are in nats per step."""

    side: str
    """low or high."""
    bound: float
    probability: float
    """p or q."""
    pg_term: float
    """CL or CH: Theorem 1's bracket."""
    pg_error: float
    """Standard error of pg_term."""
    pg_positive: float | None
    """Share of positive pg_term among pairs with a clipped action; None: no pair has one."""
    pg_predicted: float
    pg_exact: float
    ng_term: float
    """Theorem 2's bracket."""
    ng_positive: float | None
    ng_predicted: float
    ng_exact: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """Both bounds together."""

    low: float
    high: float
    predicted: float
    """Theorem 1, nats per step, mean over pairs."""
    exact: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStudy:
    rows: list[SweepRow]
    grid: list[GridRow]


def study_sweep(config: TheoryConfig, advance: Advance = lambda: None) -> SweepStudy:
    """Each bound alone, then every combination, on the same pairs."""
    pairs = config.pairs
    logits, old_logits = random_pairs(
        pairs.count, pairs.vocabulary, old_scale=pairs.old_scale, drift=pairs.drift, seed=config.seed
    )
    old, eta = old_logits.softmax(-1), config.sweep.learning_rate
    rows = []
    for side, values in (("low", config.sweep.low), ("high", config.sweep.high)):
        for value in values:
            bounds = Bounds(low=value, high=math.inf) if side == "low" else Bounds(low=1.0, high=value)
            rows.append(_sweep_row(side, value, logits=logits, old=old, bounds=bounds, eta=eta))
            advance()
    grid = []
    for low in config.sweep.low:
        for high in config.sweep.high:
            bounds = Bounds(low=low, high=high)
            terms, exact = policy_gradient_terms(logits.softmax(-1), old, bounds), _exact(logits, old, bounds, eta)
            predicted = terms.change(eta * RANDOM_SIGN.positive_mean).mean().item()
            grid.append(GridRow(low=low, high=high, predicted=predicted, exact=exact.mean().item()))
            advance()
    return SweepStudy(rows=rows, grid=grid)


def _exact(logits: Tensor, old: Tensor, bounds: Bounds, eta: float) -> Tensor:
    """Entropy change of the policy-gradient step."""
    following = (logits + eta * _differentiate(logits, old, bounds)).softmax(-1)
    return entropy(following) - entropy(logits.softmax(-1))


def _sweep_row(side: str, bound: float, *, logits: Tensor, old: Tensor, bounds: Bounds, eta: float) -> SweepRow:
    policy, delta = logits.softmax(-1), eta * RANDOM_SIGN.positive_mean
    pg, ng = policy_gradient_terms(policy, old, bounds), natural_gradient_terms(policy, old, bounds)
    pg_term, probability = _side(pg, side)
    ng_term, _ = _side(ng, side)
    ng_exact = entropy(natural_gradient_step(logits, old, bounds, delta)) - entropy(policy)
    return SweepRow(
        side=side,
        bound=bound,
        probability=probability.mean().item(),
        pg_term=pg_term.mean().item(),
        pg_error=(pg_term.std() / len(pg_term) ** 0.5).item(),
        pg_positive=_share_positive(pg_term, probability),
        pg_predicted=pg.change(delta).mean().item(),
        pg_exact=_exact(logits, old, bounds, eta).mean().item(),
        ng_term=ng_term.mean().item(),
        ng_positive=_share_positive(ng_term, probability),
        ng_predicted=ng.change(delta).mean().item(),
        ng_exact=ng_exact.mean().item(),
    )


def _side(terms: ClipTerms, side: str) -> tuple[Tensor, Tensor]:
    return (terms.low, terms.low_probability) if side == "low" else (terms.high, terms.high_probability)


def _share_positive(terms: Tensor, probability: Tensor) -> float | None:
    clipped = probability > 0
    return (terms[clipped] > 0).to(torch.float64).mean().item() if clipped.any() else None


def study_samples(config: TheoryConfig, advance: Advance = lambda: None) -> list[SlopeRow]:
    """The sampled slope of every clip of the configuration, on the same groups."""
    pairs = config.pairs
    groups = sample_groups(config.monte_carlo, old_scale=pairs.old_scale, drift=pairs.drift, seed=config.seed)
    rows = []
    for low, high in config.monte_carlo.clips:
        rows.append(measure_slope(groups, Bounds(low=low, high=high), config.monte_carlo))
        advance()
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One clip against its control; final entropy relative to the initial one, means over seeds."""

    low: float
    high: float
    entropy: float
    control: float
    difference: float
    standard_error: float
    """Of the difference, seed by seed."""
    low_term: float
    high_term: float
    dropped: float
    control_dropped: float
    curve: list[float]
    """Entropy after each rollout."""
    control_curve: list[float]


def study_training(config: TheoryConfig, advance: Advance = lambda: None) -> list[TrainingRow]:
    """Whole trainings with every clip of the configuration and with its control; empty where it is turned off."""
    multi_step = config.multi_step
    if multi_step.rollouts == 0:
        return []
    rows = []
    for low, high in multi_step.clips:
        bounds = Bounds(low=low, high=high)
        clip = train(multi_step, bounds, control=False, seed=config.seed, on_rollout=advance)
        control = train(multi_step, bounds, control=True, seed=config.seed, on_rollout=advance)
        rows.append(_training_row(bounds, clip, control))
    return rows


def _training_row(bounds: Bounds, clip: Trajectory, control: Trajectory) -> TrainingRow:
    difference = clip.entropy[-1] - control.entropy[-1]
    return TrainingRow(
        low=bounds.low,
        high=bounds.high,
        entropy=clip.entropy[-1].mean().item(),
        control=control.entropy[-1].mean().item(),
        difference=difference.mean().item(),
        standard_error=(difference.std() / len(difference) ** 0.5).item(),
        low_term=clip.low_term,
        high_term=clip.high_term,
        dropped=clip.dropped,
        control_dropped=control.dropped,
        curve=clip.entropy.mean(-1).tolist(),
        control_curve=control.entropy.mean(-1).tolist(),
    )
