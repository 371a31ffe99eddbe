"""The theorems of arXiv 2509.26114 on one tabular state, and the budget against entropy itself."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megarl.objective.tokens import Choices, TokenBatch
from tests.objective.accounting import compute, metrics_of
from tests.objective.tokens import make_tokens


def entropy_of(p_V: Tensor) -> Tensor:
    return -torch.special.xlogy(p_V, p_V).sum(-1)


def state_tokens(p_V: Tensor, old_V: Tensor, action_T: Tensor, **columns: Any) -> TokenBatch:
    """Tokens drawn in one state whose current policy is `p_V` and whose old one is `old_V`."""
    entropy = entropy_of(p_V)
    expected_q = (p_V**2 * (p_V.log() + entropy)).sum()
    return make_tokens(
        logp=p_V.log()[action_T],
        old_logp=old_V.log()[action_T],
        entropy=entropy.item(),
        expected_q=expected_q.item(),
        **columns,
    )


TYPICAL = ((0.60, 0.25, 0.08, 0.07), (62, 25, 11, 2))
DOMINANT = ((0.7, 0.15, 0.15), (90, 5, 5))


@pytest.mark.parametrize(
    ("policies", "high", "contributions", "change"),
    [
        (TYPICAL, math.inf, (0.02165807, 0.0), 5.41451778e-4),
        (TYPICAL, 0.2, (0.02165807, 0.01856600), 7.73018075e-5),
        (DOMINANT, math.inf, (-0.10190044, 0.0), -2.54751099e-3),
    ],
)
def test_theorem_1_worked_values(policies: Any, high: float, contributions: Any, change: float) -> None:
    """Every action as often as the old policy draws it, with A = 1 and A = -1: sums are the exact expectations."""
    p_V, counts = torch.tensor(policies[0], dtype=torch.float64), torch.tensor(policies[1])
    actions = torch.arange(len(counts)).repeat_interleave(counts)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(100)
    tokens = state_tokens(p_V, counts.double() / 100, actions.repeat(2), advantage=signs, weight=1 / 200)
    metrics = metrics_of(tokens, compute(tokens, clip={"low": 0.2, "high": high}, gate={}))
    value = {name: total / count for name, (total, count) in metrics.items()}
    assert value["entropy/clip_low_contribution"] == pytest.approx(contributions[0], abs=1e-8)
    assert value["entropy/clip_high_contribution"] == pytest.approx(contributions[1], abs=1e-8)
    # Learning rate .05; E[max(A, 0)] = 1/2. The unclipped loss is a martingale: the budget is what clipping does.
    assert 0.05 * value["entropy/budget"] == pytest.approx(change, abs=1e-11)
    removed = sum(value[f"entropy/budget_removed_{side}"] for side in ("low", "high", "dual"))
    assert value["entropy/budget"] + removed == pytest.approx(0, abs=1e-15)
    assert -value["entropy/budget_removed_low"] == pytest.approx(0.5 * contributions[0], abs=1e-8)


def test_contributions_estimate_the_theorem_only_with_the_ratio_as_weight() -> None:
    generator = torch.Generator().manual_seed(5)
    old_logits_V = 2.0 * torch.randn(30, generator=generator, dtype=torch.float64)
    p_V = (old_logits_V + 0.5 * torch.randn(30, generator=generator, dtype=torch.float64)).softmax(-1)
    old_V = old_logits_V.softmax(-1)
    samples = 400_000
    action_T = torch.multinomial(old_V, samples, replacement=True, generator=generator)
    tokens = state_tokens(p_V, old_V, action_T, advantage=1.0)
    loss = compute(tokens, clip={"low": 0.2, "high": 0.2}, gate={})
    weighted = metrics_of(tokens, loss)
    # The sets X and Y stay; only the weight r becomes 1.
    unweighted = metrics_of(tokens.replace(old_logp_T=tokens.logp_T), loss)

    entropy = entropy_of(p_V)
    q_V = p_V * (p_V.log() + entropy)
    gap_V, ratio_V = (p_V * q_V).sum() - q_V, p_V / old_V
    for side, outside_V in (("low", ratio_V < 0.8), ("high", ratio_V > 1.2)):
        exact = (p_V * outside_V * gap_V).sum()  # p (E[Q] - E[Q | X]) under the current policy
        term_V = ratio_V * outside_V * gap_V
        deviation = ((old_V * term_V**2).sum() - exact**2).sqrt() / math.sqrt(samples)
        name = f"entropy/clip_{side}_contribution"
        assert abs(weighted[name][0] / samples - exact) < 4 * deviation
        assert abs(unweighted[name][0] / samples - exact) > 20 * deviation
        mass = (p_V * outside_V).sum()
        assert weighted[f"entropy/clip_{side}_difference"][1] / samples == pytest.approx(mass.item(), rel=0.02)


GATES: list[dict[str, Any]] = [
    {},
    {"clip": {"low": 1.0, "high": math.inf}, "gate": {}},
    {"gate": {"kind": "ce_gppo"}},
    {"clip": {"kind": "none"}, "gate": {"kind": "cispo", "cap": 1.2}},
    {"clip": {"kind": "none"}, "gate": {"kind": "sapo"}},
    {"gate": {"kind": "aspo"}},
    {"gate": {"kind": "up"}, "clip": {"low": 0.2, "high": math.inf}},
    {"clip": {"kind": "dcpo"}},
    {"ratio": {"level": "sequence"}, "clip": {"low": 0.1, "high": 0.1}, "gate": {}},
]


@pytest.mark.parametrize("objective", GATES, ids=lambda objective: str(objective)[:60])
def test_budget_is_the_first_order_entropy_change(objective: dict[str, Any]) -> None:
    """Every token has logits of its own; the budget is d(sum of entropies) / d(learning rate) of plain descent."""
    generator = torch.Generator().manual_seed(3)
    old_TV = 1.5 * torch.randn(60, 12, generator=generator, dtype=torch.float64)
    logits_TV = (old_TV + 0.5 * torch.randn(60, 12, generator=generator, dtype=torch.float64)).requires_grad_()
    action_T1 = torch.multinomial(old_TV.softmax(-1), 1, generator=generator)
    p_TV = logits_TV.detach().softmax(-1)
    entropy_T = entropy_of(p_TV)
    tokens = make_tokens(
        [20, 15, 25],
        logp=logits_TV.log_softmax(-1).gather(1, action_T1).squeeze(1),
        old_logp=old_TV.log_softmax(-1).gather(1, action_T1).squeeze(1),
        entropy=entropy_T,
        expected_q=(p_TV**2 * (p_TV.log() + entropy_T[:, None])).sum(-1),
        advantage=torch.randn(3, generator=generator, dtype=torch.float64).repeat_interleave(
            torch.tensor([20, 15, 25])
        ),
        weight=1 / 60,
    )
    choices = Choices(
        weight_T=torch.rand(60, generator=generator, dtype=torch.float64),
        rule_T=torch.zeros(60, dtype=torch.int32),
    )
    loss = compute(tokens, choices=choices, **objective)
    loss.loss.backward()
    assert logits_TV.grad is not None
    step_TV = -logits_TV.grad

    def total_entropy(rate: float) -> float:
        return entropy_of((logits_TV.detach() + rate * step_TV).softmax(-1)).sum().item()

    metrics = metrics_of(tokens.detach(), loss)
    slope = (total_entropy(1e-3) - total_entropy(-1e-3)) / 2e-3
    assert abs(slope) > 1e-4
    assert metrics["entropy/budget"][0] == pytest.approx(slope, rel=1e-6)
    parts = [f"entropy/budget_{sign}_{fate}" for sign in ("positive", "negative") for fate in ("kept", "clipped")]
    assert sum(metrics[name][0] for name in parts) == pytest.approx(metrics["entropy/budget"][0], rel=1e-12)
