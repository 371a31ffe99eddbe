"""Token statistics: hand-counted, exactly mergeable, and consistent with the gradient."""

import math

import pytest
import torch

from megarl.config.objective import ClipConfig, KlConfig, ObjectiveConfig
from megarl.objective.loss import LossInputs, compute_token_loss
from megarl.objective.statistics import TokenSums, collect_token_sums, merge_token_sums, to_metrics

CONFIG = ObjectiveConfig(clip=ClipConfig(low=0.25, high=0.5, dual=3.0), kl=KlConfig(coefficient=0.5, estimator="k1"))


def _inputs(ratios: list[float], advantages: list[float], *, ref: bool = True) -> LossInputs:
    ratio = torch.tensor(ratios, dtype=torch.float64)
    num = len(ratios)
    return LossInputs(
        logp_T=ratio.log() - 1.0,
        entropy_T=torch.arange(1.0, num + 1, dtype=torch.float64),
        old_logp_T=torch.full((num,), -1.0, dtype=torch.float64),
        advantage_T=torch.tensor(advantages, dtype=torch.float64),
        weight_T=torch.full((num,), 0.125, dtype=torch.float64),
        ref_logp_T=ratio.log() - 1.5 if ref else None,
    )


def _sums(inputs: LossInputs) -> TokenSums:
    return collect_token_sums(CONFIG.clip, CONFIG.kl, inputs, compute_token_loss(CONFIG, inputs))


# low tie is not clipped: 0.5 is clipped for A < 0 only, 2 for A > 0 only, 4 is dual for A < 0 only.
RATIOS = [0.5, 0.5, 1.0, 2.0, 2.0, 4.0, 4.0, 1.0]
ADVANTAGES = [-1.0, 1.0, 0.0, 1.0, -1.0, -1.0, 1.0, -1.0]


def test_metrics_by_hand() -> None:
    metrics = to_metrics(_sums(_inputs(RATIOS, ADVANTAGES)))
    assert metrics["clip_ratio/low_mean"] == (1.0, 8.0)
    assert metrics["clip_ratio/high_mean"] == (2.0, 8.0)
    assert metrics["clip_ratio/dual_mean"] == (1.0, 8.0)
    assert metrics["clip_ratio/region_mean"] == (3.0, 8.0)
    assert metrics["actor/pg_clipfrac"] == (4.0, 8.0)
    assert metrics["actor/entropy"] == (36.0, 8.0)
    assert metrics["actor/advantage_positive_frac"] == (3.0, 8.0)
    assert metrics["actor/advantage_negative_frac"] == (4.0, 8.0)
    assert metrics["actor/kl_loss"] == pytest.approx((4.0, 8.0))  # k1 = 0.5 on every token
    # -A * bounded r: .75 - .5 + 0 - 1.5 + 2 + 3 - 1.5 + 1 = 3.25, weighted by 1/8
    assert metrics["actor/pg_loss"] == pytest.approx((3.25 / 8, 1.0))
    assert metrics["actor/loss"] == pytest.approx((3.25 / 8 + 0.5 * 0.5, 1.0))
    assert metrics["actor/ppo_kl"] == pytest.approx((-math.log(0.25 * 4 * 16), 8.0))
    assert metrics["actor/ratio_mean"] == pytest.approx((15.0, 8.0))
    assert metrics["actor/ratio_max"] == pytest.approx((4.0, 1.0))
    assert metrics["actor/ratio_min"] == pytest.approx((0.5, 1.0))
    assert metrics["actor/ratio_saturated_frac"] == (0.0, 8.0)


@pytest.mark.parametrize("ratio", [0.75, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_the_tokens_without_gradient(ratio, dtype) -> None:
    # Ratios on, one rounding below and one above each bound; 0.75 and 1.5 are exact in binary.
    offsets = torch.tensor([-1e-6, 0.0, 1e-6], dtype=dtype).repeat(2)
    logp = (torch.full((6,), ratio, dtype=dtype) + offsets).log().requires_grad_()
    zeros = torch.zeros(6, dtype=dtype)
    inputs = LossInputs(
        logp_T=logp,
        entropy_T=zeros,
        old_logp_T=zeros,
        advantage_T=torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=dtype),
        weight_T=zeros + 1,
    )
    config = ObjectiveConfig(clip=ClipConfig(low=0.25, high=0.5))
    loss = compute_token_loss(config, inputs)
    loss.loss.backward()
    metrics = to_metrics(collect_token_sums(config.clip, config.kl, inputs, loss))
    assert metrics["actor/pg_clipfrac"][0] == (logp.grad == 0).sum().item()
    assert 1 <= metrics["actor/pg_clipfrac"][0] <= 2


def test_merging_parts_gives_the_whole() -> None:
    whole = _sums(_inputs(RATIOS, ADVANTAGES))
    parts = [_inputs(RATIOS[a:b], ADVANTAGES[a:b]) for a, b in ((0, 3), (3, 3), (3, 8))]
    # Entropies count from 1 in each part, so they are compared on their own sum.
    merged = merge_token_sums([_sums(part) for part in parts])
    got, expected = to_metrics(merged), to_metrics(whole)
    assert got.pop("actor/entropy") == (1 + 2 + 3 + 1 + 2 + 3 + 4 + 5, 8.0)
    expected.pop("actor/entropy")
    assert got.keys() == expected.keys()
    assert all(got[name] == pytest.approx(expected[name]) for name in expected)


def test_no_tokens_have_no_value() -> None:
    metrics = to_metrics(_sums(_inputs([], [])))
    assert metrics["actor/entropy"] == (0.0, 0.0)
    assert "actor/ratio_max" not in metrics
    assert metrics == to_metrics(TokenSums.zeros())


def test_losses_average_over_mini_batches() -> None:
    one = _sums(_inputs(RATIOS, ADVANTAGES))
    metrics = to_metrics(one + one, num_mini_batches=2)
    assert metrics["actor/pg_loss"] == pytest.approx((3.25 / 4, 2.0))
    with pytest.raises(ValueError, match="num_mini_batches is 0"):
        to_metrics(one, num_mini_batches=0)


def test_saturated_ratios_are_counted() -> None:
    inputs = _inputs([1.0, 1.0], [1.0, 1.0], ref=False)
    far = LossInputs(
        logp_T=torch.tensor([-30.0, -1.0]),
        entropy_T=inputs.entropy_T,
        old_logp_T=torch.tensor([-1.0, -1.0]),
        advantage_T=inputs.advantage_T,
        weight_T=inputs.weight_T,
    )
    config = ObjectiveConfig()
    metrics = to_metrics(collect_token_sums(config.clip, config.kl, far, compute_token_loss(config, far)))
    assert metrics["actor/ratio_saturated_frac"] == (1.0, 2.0)
    assert "actor/kl_loss" not in metrics
