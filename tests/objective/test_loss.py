"""The token loss: the golden slice of gates, finite differences, verl's textbook form, extremes."""

import math

import pytest
import torch
from torch import Tensor

from megarl.config.objective import ClipConfig, KlConfig, ObjectiveConfig
from megarl.objective.loss import LossInputs, clipped_policy_loss, compute_token_loss, kl_estimate

OFF = {"low": 1.0, "high": math.inf, "dual": math.inf}


def _gate(ratio: float, advantage: float, **clip: float) -> float:
    """g = -d loss / d logp, in float64."""
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = clipped_policy_loss(
        logp_T=logp, old_logp_T=torch.zeros(1), advantage_T=torch.tensor([advantage]), **(OFF | clip)
    )
    loss.sum().backward()
    return -logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "plus", "minus", "minus_dual"),
    [(0.45, 0.45, 0, 0), (0.75, 0.75, 0, 0), (1.1, 1.1, -1.1, -1.1), (1.6, 0, -1.6, -1.6), (3.5, 0, -3.5, 0)],
)
def test_golden_gates(ratio, plus, minus, minus_dual) -> None:
    clip = {"low": 0.2, "high": 0.28}
    assert _gate(ratio, 1.0, **clip) == pytest.approx(plus)
    assert _gate(ratio, -1.0, **clip) == pytest.approx(minus)
    assert _gate(ratio, 1.0, **clip, dual=3.0) == pytest.approx(plus)
    assert _gate(ratio, -1.0, **clip, dual=3.0) == pytest.approx(minus_dual)


@pytest.mark.parametrize("ratio", [1e-8, 0.5, 1.0, 7.0, 1e8])
@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
def test_clipping_off_is_the_plain_policy_gradient(ratio, advantage) -> None:
    assert _gate(ratio, advantage) == pytest.approx(ratio * advantage, rel=1e-12)


def test_one_side_off() -> None:
    assert _gate(0.01, -1.0, low=1.0, high=0.2) == pytest.approx(-0.01)
    assert _gate(9.0, 1.0, low=0.2, high=math.inf) == pytest.approx(9.0)


def test_on_policy_with_zero_bounds_keeps_the_gradient_at_the_tie() -> None:
    for advantage in (1.0, -1.0):
        assert _gate(1.0, advantage, low=0.0, high=0.0) == pytest.approx(advantage)


def _textbook(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float) -> Tensor:
    """verl's order of max and min over -A r, -A clip(r), -A dual."""
    larger = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))
    return torch.where(advantage < 0, torch.minimum(-advantage * dual, larger), larger)


def test_value_equals_the_textbook_form() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old = torch.randn(2, 500, generator=generator)
    advantage = torch.randn(500, generator=generator)
    for low, high, dual in ((0.2, 0.28, 3.0), (0.0, 0.0, 1.5), (1.0, 5.0, 10.0)):
        loss = clipped_policy_loss(logp_T=logp, old_logp_T=old, advantage_T=advantage, low=low, high=high, dual=dual)
        torch.testing.assert_close(loss, _textbook((logp - old).exp(), advantage, low, high, dual))


def test_huge_ratios_stay_finite_and_have_no_gradient() -> None:
    logp = torch.tensor([-1.0, -500.0, -math.inf, -5.0], requires_grad=True)
    old = torch.tensor([-500.0, -1.0, -1.0, -5.0])
    loss = clipped_policy_loss(logp_T=logp, old_logp_T=old, advantage_T=torch.tensor([-1.0, 1.0, 1.0, 1.0]), **OFF)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logp.grad.tolist() == [0.0, 0.0, 0.0, -1.0]


def test_nan_is_not_hidden() -> None:
    for old, advantage in ((math.nan, 1.0), (0.0, math.nan)):
        loss = clipped_policy_loss(
            logp_T=torch.zeros(1), old_logp_T=torch.tensor([old]), advantage_T=torch.tensor([advantage]), **OFF
        )
        assert torch.isnan(loss).all()


def test_kl_estimates_by_hand() -> None:
    logp, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_estimate(logp, ref, estimator="k1").tolist() == [0.5, -1.0]
    assert kl_estimate(logp, ref, estimator="k2").tolist() == [0.125, 0.5]
    k3 = kl_estimate(logp, ref, estimator="k3").tolist()
    assert k3 == pytest.approx([math.exp(-0.5) - 0.5, math.exp(1.0) - 2.0])
    assert kl_estimate(torch.tensor([-90.0]), torch.tensor([-1.0]), estimator="k3").item() == 10.0


def test_expected_kl_gradients_are_as_documented() -> None:
    # Exact expectation over a 3-token policy: k1 pulls nowhere, k2 as KL(policy || ref), k3 as KL(ref || policy).
    z = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64), 0)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, z)[0]

    def expected(estimator) -> Tensor:
        logp = torch.log_softmax(z, 0)
        return gradient((logp.exp().detach() * kl_estimate(logp, ref, estimator=estimator)).sum())

    logp = torch.log_softmax(z, 0)
    reverse = gradient((logp.exp() * (logp - ref)).sum())
    logp = torch.log_softmax(z, 0)
    forward = gradient((ref.exp() * (ref - logp)).sum())
    torch.testing.assert_close(expected("k1"), torch.zeros_like(z), atol=1e-15, rtol=0)
    torch.testing.assert_close(expected("k2"), reverse)
    torch.testing.assert_close(expected("k3"), forward)


def _inputs(num_tokens: int = 40, **changes) -> LossInputs:
    generator = torch.Generator().manual_seed(2)
    logp, old, ref, advantage = torch.randn(4, num_tokens, generator=generator, dtype=torch.float64)
    weight = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    fields = {"logp_T": logp, "old_logp_T": old, "ref_logp_T": ref, "advantage_T": advantage}
    return LossInputs(**(fields | {"weight_T": weight, "entropy_T": logp.abs()} | changes))


def test_loss_adds_up_over_any_split_of_the_tokens() -> None:
    config = ObjectiveConfig(clip=ClipConfig(low=0.2, high=0.3, dual=3.0), kl=KlConfig(coefficient=0.1))
    whole = _inputs()
    names = ("logp_T", "entropy_T", "old_logp_T", "advantage_T", "weight_T", "ref_logp_T")
    pieces = [
        LossInputs(**{name: getattr(whole, name)[rows] for name in names})
        for rows in (slice(0, 7), slice(7, 7), slice(7, 40))
    ]
    total = sum(compute_token_loss(config, piece).loss for piece in pieces)
    torch.testing.assert_close(total, compute_token_loss(config, whole).loss)


def test_whole_loss_gradient_by_finite_differences() -> None:
    config = ObjectiveConfig(clip=ClipConfig(low=0.2, high=0.3, dual=3.0), kl=KlConfig(coefficient=0.1, estimator="k3"))
    whole = _inputs()

    def loss(logp: Tensor) -> Tensor:
        return compute_token_loss(config, _inputs(logp_T=logp)).loss

    assert torch.autograd.gradcheck(loss, whole.logp_T.clone().requires_grad_())


def test_kl_is_measured_without_coefficient_but_not_added() -> None:
    measured = compute_token_loss(ObjectiveConfig(), _inputs())
    unmeasured = compute_token_loss(ObjectiveConfig(), _inputs(ref_logp_T=None))
    assert measured.loss == unmeasured.loss
    assert measured.kl_T is not None
    assert unmeasured.kl_T is None


def test_no_tokens_still_has_a_gradient() -> None:
    empty = torch.zeros(0, requires_grad=True)
    rest = torch.zeros(0)
    config = ObjectiveConfig(kl=KlConfig(coefficient=0.1))
    result = compute_token_loss(
        config,
        LossInputs(logp_T=empty, entropy_T=rest, old_logp_T=rest, advantage_T=rest, weight_T=rest, ref_logp_T=rest),
    )
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert empty.grad.shape == (0,)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="no ref_logp_T was given"):
        compute_token_loss(ObjectiveConfig(kl=KlConfig(coefficient=0.1)), _inputs(ref_logp_T=None))
    with pytest.raises(ValueError, match="weight_T has shape"):
        _inputs(weight_T=torch.ones(1))
