"""The accounting by hand: every count, fraction and term of a batch that a person can check."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.config.weight import AggregationConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.aggregation import aggregation_weights
from megarl.objective.token_sums import (
    TokenSums,
    possible_rules,
    to_metrics,
)
from megarl.objective.tokens import Choices, TokenBatch
from megarl.rules import Rule
from tests.objective.accounting import compute, metrics_of, pairs
from tests.objective.simulated_ranks import SingleRank
from tests.objective.tokens import make_tokens

BIT = math.log(2)
SIDES = ("low", "high", "dual")


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
