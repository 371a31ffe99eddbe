"""Fragments as they are, against float64 formulas written out here from their sources, one response at a time.

Each reference gives the loss of a whole mini-batch from nothing but numbers per token; its gradient is autograd's.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megarl.config.loader import load_config
from megarl.config.objective import ObjectiveConfig
from megarl.objective.aggregation import aggregation_weights
from megarl.objective.choices import choose
from megarl.objective.controllers import ControllerState
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_random import token_uniforms
from megarl.objective.tokens import TokenBatch
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

ROOT = Path(__file__).parents[2]
LENGTHS = [6, 1, 9, 0, 4, 7]
LONGEST = 8
"""rollout.max_response_tokens of the quickstart."""


def load_objective(name: str) -> ObjectiveConfig:
    return load_config(ROOT / "configs" / "quickstart.toml", [str(ROOT / f"configs/methods/{name}.toml")]).objective


SPREAD = {"ctpo": 0.04}
"""Of the log ratios: products of many ratios stay near their bounds only where each is close to 1."""


def drawn_tokens(objective: ObjectiveConfig, seed: int, spread: float) -> TokenBatch:
    """Responses with one advantage each, ratios on both sides of every bound, and the objective's own normaliser."""
    draw = torch.Generator().manual_seed(seed)
    size = sum(LENGTHS)
    noise = torch.randn(5, size, generator=draw, dtype=torch.float64)
    old_T = -noise[0].abs() - 0.1
    logp_T = old_T + spread * noise[1]
    if spread > 0.1:
        old_T[::5], logp_T[::5] = -5.0, -0.5  # ratios of 90
    advantage_B = torch.tensor([1.0, -0.5, -1.5, 2.0, 0.5, 0.0], dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    weight_B = torch.tensor(
        aggregation_weights(objective.aggregation, LENGTHS, norm_length=LONGEST), dtype=torch.float64
    )
    return make_tokens(
        LENGTHS,
        logp=logp_T.requires_grad_(),
        old_logp=old_T,
        behavior_logp=old_T + 0.2 * noise[2],
        entropy=noise[3].abs() + 0.1,
        expected_q=noise[4].abs() * 0.2,
        advantage=advantage_B.repeat_interleave(lengths),
        weight=weight_B.repeat_interleave(lengths),
    )


def responses(tokens: TokenBatch) -> list[Tensor]:
    """Indices of the tokens of every response."""
    return [torch.nonzero(tokens.sequence_T == index).flatten() for index in range(tokens.num_sequences)]


def up_grpo(tokens: TokenBatch) -> Tensor:
    """-A p / sg[p] for A > 0; -max(min) of PPO at .8 with dual clip 3 for A < 0; the mean over tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for logp, old, a in zip(tokens.logp_T, tokens.old_logp_T, tokens.advantage_T, strict=True):
        if a > 0:
            total = total - a * (logp - logp.detach()).exp()
        else:
            ratio = (logp - old).exp()
            total = total + torch.minimum(torch.maximum(-a * ratio, -a * ratio.clamp(min=0.8)), -3 * a)
    return total / sum(LENGTHS)


def wapo(tokens: TokenBatch) -> Tensor:
    """-A min(r, 10), r against the engine, of responses with A > 0, over responses x longest response."""
    total = torch.zeros((), dtype=torch.float64)
    for at in responses(tokens):
        if len(at) and tokens.advantage_T[at[0]] > 0:
            assert tokens.behavior_logp_T is not None
            ratio_T = (tokens.logp_T[at] - tokens.behavior_logp_T[at]).exp()
            total = total - (tokens.advantage_T[at] * ratio_T.clamp(max=10.0)).sum()
    return total / (LONGEST * sum(length > 0 for length in LENGTHS))


def ppo(tokens: TokenBatch, low: float, high: float, dual: float) -> Tensor:
    """Per token, [T]: -min(r A, clip(r, low, high) A), at most -dual A where A < 0."""
    ratio_T = (tokens.logp_T - tokens.old_logp_T).exp()
    a_T = tokens.advantage_T
    loss_T = -torch.minimum(ratio_T * a_T, ratio_T.clamp(low, high) * a_T)
    return torch.where(a_T < 0, torch.minimum(loss_T, -dual * a_T), loss_T)


def stare(tokens: TokenBatch) -> Tensor:
    """The quickstart's clipped loss; of ten tokens with A > 0 the least likely weighs 1.1."""
    weights = [1.0] * sum(LENGTHS)
    positive = [index for index, a in enumerate(tokens.advantage_T.tolist()) if a > 0]
    assert len(positive) == 10
    for index in sorted(positive, key=tokens.logp_T.tolist().__getitem__)[:1]:
        weights[index] = 1.1
    return (torch.tensor(weights, dtype=torch.float64) * ppo(tokens, 0.8, 1.28, 3.0)).sum() / sum(LENGTHS)


def ctpo(tokens: TokenBatch) -> Tensor:
    """Value of the product of the ratios so far, gradient of the own; bounds exp(-.025 sqrt t) and exp(.05 sqrt t), the
    upper one for A < 0, too; the mean over tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for at in responses(tokens):
        so_far = 0.0
        for t, index in enumerate(at.tolist(), start=1):
            logp, a = tokens.logp_T[index], tokens.advantage_T[index]
            so_far += (logp - tokens.old_logp_T[index]).item()
            ratio = torch.exp(so_far + logp - logp.detach())
            low, high = (torch.tensor(distance * t**0.5, dtype=torch.float64).exp() for distance in (-0.025, 0.05))
            loss = torch.maximum(-a * ratio, -a * ratio.clamp(low, high))
            total = total + (torch.minimum(loss, -a * high) if a < 0 else loss)
    return total / sum(LENGTHS)


def opefo(tokens: TokenBatch) -> Tensor:
    """-r A, weighted so that the first-order entropy changes r A (N - p (log p + H)) add up to 0; mean over tokens."""
    logp_T, a_T = tokens.logp_T, tokens.advantage_T
    ratio_T = (logp_T - tokens.old_logp_T).exp()
    change_T = (ratio_T * a_T * (tokens.expected_q_T - logp_T.exp() * (logp_T + tokens.entropy_T))).detach()
    up, down = change_T[change_T > 0].sum(), -change_T[change_T < 0].sum()
    weight_T = 1 + (down - up) / (down + up) * change_T.sign()
    assert (weight_T * change_T).sum().abs() < 1e-12
    assert change_T.sum().abs() > 0.1
    return -(weight_T * ratio_T * a_T).sum() / sum(LENGTHS)


def nsr(tokens: TokenBatch) -> Tensor:
    """The quickstart's bounds and dual clip; beyond a bound not clipped where r times the token's noise is inside."""
    total = torch.zeros((), dtype=torch.float64)
    rescued = 0
    for index, a in enumerate(tokens.advantage_T.tolist()):
        ratio = (tokens.logp_T[index] - tokens.old_logp_T[index]).exp()
        where = {
            "sample_id_T": tokens.sample_id_T[index : index + 1],
            "position_T": tokens.position_T[index : index + 1],
        }
        noisy = ratio.item() * (0.8 + 0.4 * token_uniforms(seed=5, step=1, stream=1, **where).item())
        outside, back = (ratio > 1.28, noisy <= 1.28) if a > 0 else (ratio < 0.8, noisy >= 0.8)
        rescued += bool(outside and back)
        loss = -a * (ratio.clamp(0.8, 1.28) if outside and not back else ratio)
        total = total + (loss.clamp(max=-3.0 * a) if a < 0 else loss)
    assert rescued
    return total / sum(LENGTHS)


def sat(tokens: TokenBatch) -> Tensor:
    """PPO against the engine; of 27 tokens the two with the largest |log r| have a tighter bound; mean over tokens."""
    assert tokens.behavior_logp_T is not None
    log_ratio_T = tokens.logp_T - tokens.behavior_logp_T
    q = sorted(log_ratio_T.abs().tolist())[24]  # the 25th of 27: ceil(.9 * 27)
    total = torch.zeros((), dtype=torch.float64)
    for log_ratio, a in zip(log_ratio_T, tokens.advantage_T, strict=True):
        size = abs(log_ratio.item())
        share = 1 / (1 + ((size - q) / q) ** 2) if size > q else 1.0
        low = 1 - 0.2 * (share if log_ratio < 0 else 1.0)
        high = 1 + 0.2 * (share if log_ratio > 0 else 1.0)
        total = total - torch.minimum(log_ratio.exp() * a, log_ratio.exp().clamp(low, high) * a)
    return total / sum(LENGTHS)


REFERENCES: dict[str, Callable[[TokenBatch], Tensor]] = {
    "up-grpo": up_grpo,
    "wapo": wapo,
    "stare": stare,
    "ctpo": ctpo,
    "opefo": opefo,
    "nsr": nsr,
    "sat": sat,
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", REFERENCES)
def test_fragment_is_its_formula(name: str, seed: int) -> None:
    objective = load_objective(name)
    tokens = drawn_tokens(objective, seed, SPREAD.get(name, 0.4))
    controls = ControllerState(objective, total_steps=9, seed=5).begin_step(1, 0.1)
    choices = choose(objective, tokens, controls, SingleRank())
    loss = compute_token_loss(objective, controls, tokens, choices)
    expected = REFERENCES[name](tokens)
    assert loss.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient_T,) = torch.autograd.grad(loss.loss, tokens.logp_T)
    (expected_T,) = torch.autograd.grad(expected, tokens.logp_T)
    assert torch.allclose(gradient_T, expected_T, rtol=1e-9, atol=1e-14)
    assert gradient_T.count_nonzero() > 5
