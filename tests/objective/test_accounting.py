"""The accounting: hand-computed numbers, the theorems on tabular policies, and independence of the split."""

import dataclasses
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.config.weight import AggregationConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.aggregation import aggregation_weights
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_sums import (
    MAX_NAMES,
    SUM_NAMES,
    TokenSums,
    merge_token_sums,
    possible_rules,
    to_metrics,
)
from megarl.objective.tokens import Choices, Controls, Rule, TokenBatch, TokenLoss
from megarl.telemetry.metrics import Mean, Metrics
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

BIT = math.log(2)
SIDES = ("low", "high", "dual")
OBJECTIVE = {"clip": {"low": 0.25, "high": 0.5}, "gate": {"dual": 3.0}}


def compute(tokens: TokenBatch, *, choices: Choices | None = None, **objective: Any) -> TokenLoss:
    """The real loss with the objective of this file, `objective` on top."""
    config = ObjectiveConfig.model_validate(OBJECTIVE | objective)
    return compute_token_loss(config, Controls(step=1, seed=0), tokens, choices or Choices.none(tokens.logp_T))


def pairs(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """Name -> (total, count); of what is no mean (value, 1)."""
    return {
        name: (metric.total, metric.count) if isinstance(metric, Mean) else (metric.value, 1.0)
        for name, metric in metrics.items()
    }


def metrics_of(tokens: TokenBatch, loss: TokenLoss) -> dict[str, tuple[float, float]]:
    return pairs(to_metrics(collect_token_sums(tokens, loss, SingleRank())))


# Probabilities are r / 16, entropies and N whole or 1/8 bits, so every Q = p (log p + H) is a short fraction of a bit.
# Tokens 0 (A < 0) and 1 are below lo = .75; 3 and 6 (A > 0), 4 and 5 (A < 0) above hi = 1.5; 5 is above dual = 3.
RATIOS = [0.5, 0.5, 1.0, 2.0, 2.0, 4.0, 4.0, 1.0]
ADVANTAGES = [-1.0, 1.0, 0.0, 1.0, -1.0, -1.0, 1.0, -1.0]
BITS = [6.0, 1.0, 4.0, 5.0, 4.0, 2.0, 1.0, 3.0]
# N - Q in bits:   3/32, 1/4, 1/8, -1/8, 0, 1/8, 3/8, 3/16


def hand_tokens(**changes: Any) -> TokenBatch:
    columns = {
        "logp": [math.log(ratio / 16) for ratio in RATIOS],
        "old_logp": math.log(1 / 16),
        "entropy": [bits * BIT for bits in BITS],
        "expected_q": BIT / 8,
        "advantage": ADVANTAGES,
        "weight": 0.125,
    }
    return make_tokens([3, 0, 5], **(columns | changes))


def test_entropy_loss_and_ratio_by_hand() -> None:
    tokens = hand_tokens(ref_logp=[math.log(ratio / 16) - 0.5 for ratio in RATIOS])
    metrics = metrics_of(tokens, compute(tokens, auxiliary={"kl": {"coefficient": 0.5, "estimator": "k1"}}))
    expected = {
        "actor/entropy": (26 * BIT, 8),
        # Responses of 3 and 5 tokens; the empty one has no mean.
        "actor/entropy_response_mean": ((11 / 3 + 15 / 5) * BIT, 2),
        "actor/logp": (-28 * BIT, 8),
        # -A * bounded r: .75 - .5 + 0 - 1.5 + 2 + 3 - 1.5 + 1 = 3.25, weighted by 1/8
        "actor/pg_loss": (3.25 / 8, 1),
        "actor/aux_loss": (0.25, 1),
        "actor/loss": (3.25 / 8 + 0.25, 1),
        "actor/kl_loss": (4, 8),
        "actor/ppo_kl": (-math.log(0.25 * 4 * 16), 8),
        "actor/ratio_mean": (15, 8),
        "actor/ratio_max": (4, 1),
        "actor/ratio_min": (0.5, 1),
        "actor/ratio_saturated_frac": (0, 8),
        "actor/advantage_positive_frac": (3, 8),
        "actor/advantage_negative_frac": (4, 8),
        "actor/weight_mean": (8, 8),
        "actor/masked_frac": (0, 8),
    }
    assert {name: metrics[name] for name in expected} == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_clip_fractions_by_hand() -> None:
    tokens = hand_tokens()
    metrics = metrics_of(tokens, compute(tokens))
    assert metrics["clip_ratio/low_mean"] == (1, 8)
    assert metrics["clip_ratio/high_mean"] == (2, 8)
    assert metrics["clip_ratio/dual_mean"] == (1, 8)
    assert metrics["clip_ratio/region_mean"] == (3, 8)
    assert metrics["actor/pg_clipfrac"] == (4, 8)
    assert metrics["clip_ratio/low_of_negative"] == (1, 4)
    assert metrics["clip_ratio/high_of_positive"] == (2, 3)
    assert metrics["clip_ratio/low_effective"] == (1, 8)
    assert metrics["clip_ratio/high_effective"] == (2, 8)
    assert metrics["clip_bound/low_mean"] == (8 * 0.25, 8)
    assert metrics["clip_bound/high_mean"] == (8 * 0.5, 8)
    assert metrics["rule/tis_frac"] == (0, 8)
    assert [metrics[f"entropy/region_e{i}"][0] for i in (1, 2, 3, 4)] == [1, 2, 2, 1]  # token 5 is a tie
    # Sorted bits 1 1 2 3 4 4 5 6: edges of rank 1, 3, 4, 6 are 1, 3, 4, 5. Nothing is below the first edge.
    quintiles = {name: pair for name, pair in metrics.items() if "_q" in name}
    assert quintiles == {
        **{f"clip_ratio/low_q{q}": pair for q, pair in ((2, (0, 3)), (3, (0, 1)), (4, (0, 2)), (5, (1, 2)))},
        **{f"clip_ratio/high_q{q}": pair for q, pair in ((2, (1, 3)), (3, (0, 1)), (4, (0, 2)), (5, (1, 2)))},
    }


def test_theorem_quantities_by_hand() -> None:
    tokens = hand_tokens()
    metrics = metrics_of(tokens, compute(tokens))
    expected = {  # in bits
        # X = {0, 1}, r = 1/2 each: 3/64 + 8/64; -logp - H = -1 and 4.
        "clip_low_contribution": (11 / 64, 8),
        "clip_low_contribution_weighted": (11 / 64 / 8, 1),
        "clip_low_difference": (11 / 64, 1),
        "clip_low_surprisal": (1.5, 1),
        "clip_low_surprisal_contribution": (1.5, 8),
        # Y = {3, 4, 5, 6} whatever the sign of A, r = 2, 2, 4, 4; -logp - H = -2, -1, 0, 1.
        "clip_high_contribution": (1.75, 8),
        "clip_high_contribution_weighted": (1.75 / 8, 1),
        "clip_high_difference": (1.75, 12),
        "clip_high_surprisal": (-2, 12),
        "clip_high_surprisal_contribution": (-2, 8),
        # D = {5, 6} whatever the sign of A, r = 4: 4/8 + 12/8; -logp - H = 0, 1.
        "clip_dual_contribution": (2, 8),
        "clip_dual_contribution_weighted": (2 / 8, 1),
        "clip_dual_difference": (2, 8),
        "clip_dual_surprisal": (4, 8),
        "clip_dual_surprisal_contribution": (4, 8),
    }
    for name, (bits, count) in expected.items():
        assert metrics[f"entropy/{name}"] == pytest.approx((bits * BIT, count))


@pytest.mark.parametrize("dual", [math.inf, 2.0, 1.1], ids=["no dual clip", "beyond clip-high", "before clip-high"])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_weighted_contributions_are_what_clipping_does_to_the_budget(mode: str, dual: float) -> None:
    """Random rewards, A = +1 and -1 equally often: the mean budget is E[max(A, 0)] (CL - CH + CD), states weighing as
    in the loss. The plain means over tokens say so only where the loss is one, too."""
    lengths, config = [1, 3], AggregationConfig.model_validate({"mode": mode})
    per_response = aggregation_weights(config, lengths, norm_length=None)
    weight = [w for w, length in zip(per_response, lengths, strict=True) for _ in range(length)]
    logp = [math.log(0.06), math.log(0.3), math.log(0.1), math.log(0.5)]
    common = {"old_logp": math.log(0.2), "entropy": [1.0, 0.7, 1.5, 0.4], "expected_q": 0.05, "logp": logp}
    found = []
    for advantage in (1.0, -1.0):
        tokens = make_tokens(lengths, advantage=advantage, weight=weight, **common)
        found.append(metrics_of(tokens, compute(tokens, clip={"low": 0.2, "high": 0.2}, gate={"dual": dual})))
    value = {name: total / count for name, (total, count) in found[0].items()}
    mean_budget = sum(metrics["entropy/budget"][0] for metrics in found) / 2
    weighted = [value[f"entropy/clip_{side}_contribution_weighted"] for side in SIDES]
    plain = [value[f"entropy/clip_{side}_contribution"] for side in SIDES]
    assert mean_budget == pytest.approx(0.5 * (weighted[0] - weighted[1] + weighted[2]), rel=1e-9)
    assert (weighted[2] != 0) == math.isfinite(dual)
    assert (weighted == pytest.approx(plain)) == (mode == "token-mean")


def test_budget_by_hand() -> None:
    tokens = hand_tokens()
    metrics = metrics_of(tokens, compute(tokens))
    expected = {  # in bits / 8; kept are 1 (r A = .5), 2 (0), 4 (-2), 7 (-1)
        "budget": 1 / 8 - 3 / 16,
        "budget_positive_kept": 1 / 8,
        "budget_positive_clipped": 0,
        "budget_negative_kept": -3 / 16,
        "budget_negative_clipped": 0,
        "budget_removed_low": -0.5 * 3 / 32,
        "budget_removed_high": 2 * -1 / 8 + 4 * 3 / 8,
        "budget_removed_dual": -4 * 1 / 8,
    }
    for name, eighths in expected.items():
        assert metrics[f"entropy/{name}"] == pytest.approx((eighths * BIT / 8, 1)), name


def test_ce_gppo_leaves_clipped_tokens_a_budget() -> None:
    tokens = hand_tokens()
    gate = {"kind": "ce_gppo", "low_scale": 0.5, "high_scale": 0.25, "dual": 3.0}
    metrics = metrics_of(tokens, compute(tokens, gate=gate))
    # Token 0 keeps g = -.5 * .75, tokens 3 and 6 keep .25 * 1.5; (in bits / 8)
    kept_low, kept_high = -0.375 * 3 / 32, 0.375 * (-1 / 8 + 3 / 8)
    assert metrics["entropy/budget_negative_clipped"][0] == pytest.approx(kept_low * BIT / 8)
    assert metrics["entropy/budget_positive_clipped"][0] == pytest.approx(kept_high * BIT / 8)
    assert metrics["entropy/budget_removed_low"][0] == pytest.approx((-3 / 64 - kept_low) * BIT / 8)
    assert metrics["entropy/budget_removed_high"][0] == pytest.approx((1.25 - kept_high) * BIT / 8)


def test_token_weights_scale_losses_and_budgets_but_no_count() -> None:
    tokens = hand_tokens()
    weight_T = torch.tensor([0.0, 1, 1, 1, 1, 1, 2, 1], dtype=torch.float64)
    rule_T = torch.tensor([Rule.TIS, 0, 0, 0, 0, 0, Rule.TIS | Rule.CLIP_COV, 0], dtype=torch.int32)
    metrics = metrics_of(tokens, compute(tokens, choices=Choices(weight_T=weight_T, rule_T=rule_T)))
    assert metrics["actor/weight_mean"] == (8, 8)
    assert metrics["actor/masked_frac"] == (1, 8)
    assert metrics["rule/tis_frac"] == (2, 8)
    assert metrics["rule/clip_cov_frac"] == (1, 8)
    assert metrics["clip_ratio/high_mean"] == (2, 8)
    # Token 0, the one of the low side, is masked.
    assert metrics["clip_ratio/low_mean"] == (1, 8)
    assert metrics["clip_ratio/low_effective"] == (0, 8)
    assert metrics["clip_ratio/high_effective"] == (2, 8)
    assert metrics["actor/pg_loss"] == pytest.approx(((3.25 - 0.75 - 1.5) / 8, 1))
    assert metrics["entropy/budget_removed_low"][0] == 0
    assert metrics["entropy/budget_removed_high"][0] == pytest.approx((-1 / 4 + 2 * 1.5) * BIT / 8)


def test_dppo_drops_count_for_the_side_of_their_advantage() -> None:
    tokens = hand_tokens()
    dropped_T = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.int32) * int(Rule.DPPO)
    loss = dataclasses.replace(compute(tokens, clip={"kind": "none"}, gate={"kind": "ppo"}), rule_T=dropped_T)
    metrics = metrics_of(tokens, loss)
    assert metrics["clip_ratio/low_mean"] == (1, 8)
    assert metrics["clip_ratio/high_mean"] == (2, 8)
    assert metrics["actor/pg_clipfrac"] == (3, 8)
    assert metrics["rule/dppo_frac"] == (3, 8)


@pytest.mark.parametrize("ratio", [0.75, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_counts_are_the_tokens_without_gradient(ratio: float, dtype: torch.dtype) -> None:
    # Ratios on, one rounding below and one above each bound; 0.75 and 1.5 are exact in binary.
    offsets = torch.tensor([-1e-6, 0.0, 1e-6], dtype=dtype).repeat(2)
    logp = (torch.full((6,), ratio, dtype=dtype) + offsets).log().requires_grad_()
    tokens = make_tokens(logp=logp, old_logp=0.0, advantage=[1.0, 1, 1, -1, -1, -1], dtype=dtype)
    loss = compute(tokens)
    loss.loss.backward()
    metrics = metrics_of(tokens, loss)
    assert logp.grad is not None
    assert metrics["actor/pg_clipfrac"][0] == (logp.grad == 0).sum().item()
    assert 1 <= metrics["actor/pg_clipfrac"][0] <= 2


def test_what_was_never_counted_has_no_value() -> None:
    tokens = make_tokens([0, 0], advantage=[])
    metrics = metrics_of(tokens, compute(tokens))
    assert metrics == pairs(to_metrics(TokenSums.zeros()))
    # Only what averages over mini-batches is left.
    averaged = ("budget", "pg", "aux", "loss", *(f"clip_{side}_contribution_weighted" for side in SIDES))
    assert set(metrics) == {name for name in metrics if name.split("/")[1].startswith(averaged)}
    assert all(pair == (0.0, 1.0) for pair in metrics.values())
    inside = make_tokens(advantage=[1.0, 1.0])
    metrics = metrics_of(inside, compute(inside))
    assert "entropy/clip_low_difference" not in metrics
    assert "entropy/clip_high_surprisal" not in metrics
    assert "clip_ratio/low_of_negative" not in metrics
    metrics_off = metrics_of(inside, compute(inside, clip={"low": 1.0, "high": math.inf}))
    assert "clip_bound/low_mean" not in metrics_off
    assert "clip_bound/high_mean" not in metrics_off
    assert "actor/kl_loss" not in metrics
    assert metrics["entropy/clip_low_contribution"] == (0, 2)


def test_losses_and_budgets_average_over_mini_batches() -> None:
    tokens = hand_tokens()
    one = collect_token_sums(tokens, compute(tokens), SingleRank())
    metrics = pairs(to_metrics(one + one, num_mini_batches=2))
    assert metrics["actor/pg_loss"] == pytest.approx((3.25 / 4, 2))
    assert metrics["entropy/budget"] == pytest.approx((-BIT / 64, 2))
    with pytest.raises(ValueError, match="num_mini_batches is 0"):
        to_metrics(one, num_mini_batches=0)


def test_saturated_ratios_are_counted_and_stay_finite() -> None:
    tokens = make_tokens(logp=[-1.0, -1.0], old_logp=[-900.0, -1.0], dtype=torch.float32)
    sums = collect_token_sums(tokens, compute(tokens), SingleRank())
    assert pairs(to_metrics(sums))["actor/ratio_saturated_frac"] == (1, 2)
    assert sums.sum_N.isfinite().all()


def test_only_rules_that_may_act_are_reported() -> None:
    def names(**objective: Any) -> set[str]:
        rules = possible_rules(ObjectiveConfig.model_validate(objective))
        return {name for name in to_metrics(sums, rules=rules) if name.startswith("rule/")}

    tokens = hand_tokens()
    sums = collect_token_sums(tokens, compute(tokens), SingleRank())
    assert names() == set()
    assert names(clip={"kind": "none"}, gate={"kind": "dppo"}, weights={"tis": {}}, auxiliary={"kl_cov": {}}) == {
        *("rule/cap_frac", "rule/dppo_frac", "rule/tis_frac", "rule/kl_cov_frac"),
    }
    # Both clip sides, the dual clip and saturated ratios are counted under clip_ratio/ and actor/ alone.
    assert len({name for name in to_metrics(sums) if name.startswith("rule/")}) == len(Rule) - 4


@pytest.mark.parametrize(
    ("weights", "masks"),
    [
        ({}, False),
        ({"tis": {}, "positive_scale": {}}, False),
        *(({name: {}}, True) for name in ("importance_mask", "sequence_rejection", "opsm", "high_entropy")),
        *(({name: {}}, True) for name in ("clip_cov", "clip_b", "clip_v", "erc")),
    ],
)
def test_effective_shares_are_reported_where_a_rule_may_mask(weights: dict[str, Any], *, masks: bool) -> None:
    tokens = hand_tokens()
    sums = collect_token_sums(tokens, compute(tokens), SingleRank())
    metrics = to_metrics(sums, rules=possible_rules(ObjectiveConfig.model_validate({"weights": weights})))
    assert ("clip_ratio/low_effective" in metrics, "clip_ratio/high_effective" in metrics) == (masks, masks)


# --- The theorems of arXiv 2509.26114 on one tabular state -----------------------------------------------------------


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


# --- Independence of the split ---------------------------------------------------------------------------------------


class ThreadRanks:
    """`Reduce` among threads that stand for ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=20)
        self._values: dict[int, Tensor] = {}

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values)).sum(0)

    def max(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values)).amax(0)

    def _exchange(self, values: Tensor) -> list[Tensor]:
        self._values[threading.get_ident()] = values
        self._barrier.wait()
        everything = list(self._values.values())
        self._barrier.wait()
        self._values.pop(threading.get_ident())
        self._barrier.wait()
        return everything


def random_tokens(lengths: Sequence[int], seed: int, first_id: int = 0) -> list[TokenBatch]:
    """One batch per response; each is a function of its id alone. Entropies are few, so quintile edges have ties."""
    batches = []
    for sample_id, length in enumerate(lengths, start=first_id):
        generator = torch.Generator().manual_seed(seed * 1000 + sample_id)
        draw = torch.rand(5, length, generator=generator)
        batches.append(
            make_tokens(
                [length],
                sample_ids=[sample_id],
                logp=-3 * draw[0] - 0.01,
                old_logp=-3 * draw[0] - 0.01 + draw[1] - 0.5,
                entropy=(4 * draw[2]).round() / 2,
                expected_q=draw[3] / 4,
                advantage=(3 * draw[4]).round() - 1.5,
                weight=1 / sum(lengths) if sum(lengths) else 0.0,
                dtype=torch.float32,
            )
        )
    return batches


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_any_split_over_ranks_and_micro_batches_gives_the_same_sums(
    lengths: list[int], cuts: list[int], seed: int
) -> None:
    batches = random_tokens(lengths, seed)
    losses = [compute(batch) for batch in batches]
    whole = TokenBatch.concatenate(batches)
    expected = collect_token_sums(whole, compute(whole), SingleRank())

    edges = [0, *sorted(min(cut, len(batches)) for cut in cuts), len(batches)]
    shares = [slice(start, stop) for start, stop in pairwise(edges)]
    ranks = ThreadRanks(len(shares))
    nothing = make_tokens([], advantage=[], dtype=torch.float32)

    def collect(share: slice) -> TokenSums:
        tokens = TokenBatch.concatenate(batches[share] or [nothing])
        loss = TokenLoss.concatenate(losses[share] or [compute(nothing)])
        return collect_token_sums(tokens, loss, ranks)

    with ThreadPoolExecutor(len(shares)) as pool:
        merged = merge_token_sums(pool.map(collect, shares))
    assert merged.max_M.tolist() == expected.max_M.tolist()
    assert len(merged.max_M) == len(MAX_NAMES)
    for name, got, wanted in zip(SUM_NAMES, merged.sum_N.tolist(), expected.sum_N.tolist(), strict=True):
        # The losses' own scalars are float32 sums made before the accounting sees them.
        tolerance = 1e-6 if name in ("loss", "auxiliary_loss") else 1e-13
        assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance), name
    assert to_metrics(merged).keys() == to_metrics(expected).keys()
