"""Sampled estimators against exact values: |z| < 4 with fixed seeds, and a biased estimator that must be found out."""

import math

import pytest
import torch
from torch import Tensor

from megarl.config.theory import MonteCarloConfig
from megarl.theory.monte_carlo import (
    Groups,
    group_positive_mean,
    measure_slope,
    random_pairs,
    sample_groups,
    sampled_terms,
)
from megarl.theory.tabular import Bounds
from megarl.theory.theorems import policy_gradient_terms

SYMMETRIC = Bounds(low=0.2, high=0.2)
NO_CLIP = Bounds(low=1.0, high=math.inf)


def z_score(samples: Tensor, expected: Tensor) -> float:
    return ((samples.mean() - expected) / (samples.std() / len(samples) ** 0.5)).item()


def test_weighted_samples_estimate_the_terms_and_unweighted_ones_do_not() -> None:
    logits, old_logits = random_pairs(1, 20, old_scale=2.0, drift=0.5, seed=4)
    policy, old = logits[0].softmax(-1), old_logits[0].softmax(-1)
    exact = policy_gradient_terms(policy, old, SYMMETRIC)
    assert exact.low_probability > 0.02
    assert exact.high_probability > 0.02
    actions = torch.multinomial(old, 400_000, replacement=True, generator=torch.Generator().manual_seed(1))
    for samples, expected in zip(sampled_terms(policy, old, SYMMETRIC, actions), (exact.low, exact.high), strict=True):
        assert abs(z_score(samples, expected)) < 4
    biased = sampled_terms(policy, old, SYMMETRIC, actions, weighted=False)
    assert max(abs(z_score(biased[0], exact.low)), abs(z_score(biased[1], exact.high))) > 20


def test_positive_mean_of_a_group() -> None:
    """G = 8, p = 0.5: 0.25 (1 - 1/8); by hand for G = 2: one reward of two with probability 1/2, then 1/4."""
    assert group_positive_mean(8, 0.5) == pytest.approx(0.21875, abs=1e-15)
    assert group_positive_mean(2, 0.5) == pytest.approx(0.125, abs=1e-15)
    assert group_positive_mean(16, 0.3) == pytest.approx(0.3 * 0.7 * (1 - 1 / 16), abs=1e-15)


CONFIG = MonteCarloConfig()


@pytest.fixture(scope="module")
def groups() -> Groups:
    return sample_groups(CONFIG, old_scale=2.0, drift=0.5, seed=0)


def test_empirical_positive_mean(groups: Groups) -> None:
    assert groups.advantage.clamp(min=0).mean().item() == pytest.approx(0.21875, rel=0.01)
    assert groups.advantage.mean(-1).abs().max() < 1e-15


@pytest.mark.parametrize("clip", [clip for clip in CONFIG.clips if clip != [1.0, math.inf]], ids=str)
def test_slope_of_sampled_groups_is_the_prediction(groups: Groups, clip: list[float]) -> None:
    row = measure_slope(groups, Bounds(low=clip[0], high=clip[1]), CONFIG)
    assert row.z is not None
    assert abs(row.z) < 4
    assert row.standard_error < 1e-4
    if clip[0] < 1:  # the difference is seen: a prediction of 0 would be refused
        assert row.measured / row.standard_error > 20


def test_without_clip_the_first_order_vanishes_and_the_second_does_not(groups: Groups) -> None:
    row = measure_slope(groups, NO_CLIP, CONFIG)
    assert row.predicted == 0
    assert row.z is None
    assert abs(row.measured) < 1e-4
    assert -2.5e-3 < row.curvature < -1e-3
    # The mean over A and -A is even in eta, so what the extrapolation leaves is of order eta^4 in the change and eta^3
    # in the coefficient: a step 10 times as large leaves 1000 times as much.
    coarse = measure_slope(groups, NO_CLIP, CONFIG.model_copy(update={"learning_rate": 2.0}))
    assert 800 < coarse.measured / row.measured < 1200
    assert abs(coarse.measured) < 1e-4
