"""The trainer's loss against the theory: logits -> vocab-parallel log-probs -> compute_token_loss -> autograd.

One state; its tokens are all V actions with A = +1 and A = -1, weighted by the old policy: the exact expectation.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.loss import compute_token_loss
from megarl.objective.tokens import Choices, Controls, TokenBatch, TokenLoss
from megarl.parallel.vocab import vocab_parallel_logp_entropy
from megarl.theory.monte_carlo import random_pairs
from megarl.theory.tabular import Bounds, clip_direction, clip_sets, entropy, surrogate_gradient
from megarl.theory.theorems import advantage_budget, policy_gradient_terms
from tests.objective.tokens import make_tokens

CONTROLS = Controls(step=1, seed=0)
VOCABULARY = 20
STATES = 25


def states(bounds: Bounds) -> list[tuple[Tensor, Tensor]]:
    """(current logits, old logits) of states with clipped actions, no ratio within 1e-3 of a bound."""
    logits, old_logits = random_pairs(STATES, VOCABULARY, old_scale=1.5, drift=0.5, seed=21)
    ratio = logits.softmax(-1) / old_logits.softmax(-1)
    edges = [edge for edge in (1 - bounds.low, 1 + bounds.high, bounds.dual) if 0 < edge < math.inf]
    keep = torch.stack([((ratio - edge).abs() > 1e-3).all(-1) for edge in edges]).all(0)
    assert keep.sum() > 15
    return list(zip(logits[keep], old_logits[keep], strict=True))


def trainer_loss(
    theta_V: Tensor, old_theta_V: Tensor, advantage_T: Tensor, action_T: Tensor, objective: dict[str, Any]
) -> tuple[TokenLoss, TokenBatch]:
    """The loss of tokens `action_T` weighted by the old policy, as the trainer computes it from logits."""
    num_tokens = len(action_T)
    shared = {"vocab_start": 0, "vocab_stop": len(theta_V)}
    with torch.no_grad():
        old = vocab_parallel_logp_entropy(old_theta_V.repeat(num_tokens, 1), action_T, **shared)
    now = vocab_parallel_logp_entropy(theta_V.repeat(num_tokens, 1), action_T, with_expected_q=True, **shared)
    repeats = num_tokens // len(theta_V)
    tokens = make_tokens(
        [1] * num_tokens,
        dtype=theta_V.dtype,
        logp=now.logp_T,
        entropy=now.entropy_T,
        expected_q=now.expected_q_T,
        old_logp=old.logp_T,
        old_entropy=old.entropy_T,
        advantage=advantage_T,
        weight=old.logp_T.exp() / repeats,
    )
    config = ObjectiveConfig.model_validate(objective)
    return compute_token_loss(config, CONTROLS, tokens, Choices.none(tokens.logp_T)), tokens


def every_action_with_both_signs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(advantages, actions), [2 V]."""
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat_interleave(VOCABULARY)
    return signs, torch.arange(VOCABULARY).repeat(2)


def objective_of(bounds: Bounds) -> dict[str, Any]:
    return {
        "clip": {"kind": "constant", "low": bounds.low, "high": bounds.high},
        "gate": {"kind": "ppo", "dual": bounds.dual},
    }


BOUNDS = {
    "symmetric": Bounds(low=0.2, high=0.2),
    "low only": Bounds(low=0.2, high=math.inf),
    "high only": Bounds(low=1.0, high=0.28),
    "dual": Bounds(low=0.2, high=0.2, dual=1.5),
    "dual without clip-high": Bounds(low=0.2, high=math.inf, dual=1.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_gradient_of_the_logits_is_the_closed_form(bounds: Bounds, dtype: torch.dtype) -> None:
    largest, directions = 0.0, set()
    for logits, old_logits in states(bounds):
        theta_V = logits.to(dtype).requires_grad_()
        loss, _ = trainer_loss(
            theta_V, old_logits.to(dtype), *every_action_with_both_signs(dtype), objective_of(bounds)
        )
        (gradient_V,) = torch.autograd.grad(loss.loss, theta_V)
        policy, old = logits.softmax(-1), old_logits.softmax(-1)
        closed = -surrogate_gradient(policy, old, bounds, 0.5)
        assert (gradient_V.double() - closed).abs().max() < (1e-6 if dtype == torch.float32 else 1e-13)
        largest = max(largest, closed.abs().max().item())
        directions |= set(clip_direction(policy, old, bounds).tolist())
    assert largest > 1e-2
    assert (1.0 in directions) == (bounds.low < 1)
    assert (-1.0 in directions) == math.isfinite(bounds.high)


def test_the_dual_clip_is_seen() -> None:
    """The closed form without the dual set does not fit a loss with it: the test above can fail."""
    bounds = BOUNDS["dual"]
    errors = []
    for logits, old_logits in states(bounds):
        theta_V = logits.clone().requires_grad_()
        signs_T, action_T = every_action_with_both_signs(torch.float64)
        loss, _ = trainer_loss(theta_V, old_logits, signs_T, action_T, objective_of(bounds))
        (gradient_V,) = torch.autograd.grad(loss.loss, theta_V)
        without = -surrogate_gradient(logits.softmax(-1), old_logits.softmax(-1), BOUNDS["symmetric"], 0.5)
        errors.append((gradient_V - without).abs().max().item())
    assert max(errors) > 1e-2


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_coefficients_are_the_entropy_budget(bounds: Bounds) -> None:
    """-sum coefficient (Q - N) over the tokens is the first-order entropy change per learning rate, any advantages."""
    draw = torch.Generator().manual_seed(3)
    for logits, old_logits in states(bounds):
        advantage_V = torch.randn(VOCABULARY, generator=draw, dtype=torch.float64)
        loss, tokens = trainer_loss(logits, old_logits, advantage_V, torch.arange(VOCABULARY), objective_of(bounds))
        budget = -(loss.coefficient_T * (tokens.q_T - tokens.expected_q_T)).sum()
        expected = advantage_budget(logits.softmax(-1), old_logits.softmax(-1), bounds, advantage_V)
        assert budget.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-13)


def test_logged_terms_are_theorem_1() -> None:
    """Weighted by the old policy, r 1_X (N - Q) of the tokens adds up to p (E[Q] - E[Q|X]), and Y's likewise."""
    bounds = BOUNDS["symmetric"]
    for logits, old_logits in states(bounds):
        ones_V = torch.ones(VOCABULARY, dtype=torch.float64)
        loss, tokens = trainer_loss(logits, old_logits, ones_V, torch.arange(VOCABULARY), objective_of(bounds))
        gap_T = tokens.weight_T * loss.ratio_T * (tokens.expected_q_T - tokens.q_T)
        policy, old = logits.softmax(-1), old_logits.softmax(-1)
        low_set, high_set = clip_sets(policy, old, bounds)
        assert torch.equal(loss.ratio_T < loss.low_T, low_set)
        assert torch.equal(loss.ratio_T > loss.high_T, high_set)
        terms = policy_gradient_terms(policy, old, bounds)
        assert (gap_T * low_set).sum().item() == pytest.approx(terms.low.item(), rel=1e-9, abs=1e-13)
        assert (gap_T * high_set).sum().item() == pytest.approx(terms.high.item(), rel=1e-9, abs=1e-13)


GATES: dict[str, dict[str, Any]] = {
    "ppo": {"gate": {"kind": "ppo", "dual": 1.5}, "clip": {"kind": "constant", "low": 0.2, "high": 0.28}},
    "ce_gppo": {"gate": {"kind": "ce_gppo"}, "clip": {"kind": "constant", "low": 0.2, "high": 0.28}},
    "cispo": {"gate": {"kind": "cispo", "cap": 1.2}, "clip": {"kind": "none"}},
    "sapo": {"gate": {"kind": "sapo"}, "clip": {"kind": "none"}},
    "dppo": {"gate": {"kind": "dppo", "low": 0.05, "high": 0.05}, "clip": {"kind": "none"}},
    "aspo": {"gate": {"kind": "aspo"}, "clip": {"kind": "constant", "low": 0.2, "high": 0.28}},
    "up": {"gate": {"kind": "up", "dual": 1.5}, "clip": {"kind": "constant", "low": 0.2, "high": math.inf}},
    "dcpo": {"gate": {"kind": "ppo"}, "clip": {"kind": "dcpo"}},
}


@pytest.mark.parametrize("method", GATES)
def test_budget_predicts_the_entropy_of_a_real_step_for_every_gate(method: str) -> None:
    """Step the logits along the trainer's own gradient: what the budget leaves falls fourfold when the step halves."""
    ratios = []
    draw = torch.Generator().manual_seed(4)
    for logits, old_logits in states(Bounds(low=0.2, high=0.28, dual=1.5)):
        advantage_V = torch.randn(VOCABULARY, generator=draw, dtype=torch.float64)
        theta_V = logits.clone().requires_grad_()
        loss, tokens = trainer_loss(theta_V, old_logits, advantage_V, torch.arange(VOCABULARY), GATES[method])
        (gradient_V,) = torch.autograd.grad(loss.loss, theta_V)
        budget = -(loss.coefficient_T * (tokens.q_T - tokens.expected_q_T)).sum()
        before = entropy(logits.softmax(-1))
        errors = [
            (entropy((logits - eta * gradient_V).softmax(-1)) - before - eta * budget).abs()
            for eta in (2e-2, 1e-2, 5e-3)
        ]
        ratios += [(errors[0] / errors[1]).item(), (errors[1] / errors[2]).item()]
    assert 3.7 < torch.tensor(ratios).median() < 4.3
