"""Gradients of every gate against finite differences, and what holds for any tokens."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.config.gate import AspoGate, CeGppoGate, CispoGate, DppoGate, PpoGate, SapoGate
from megarl.config.objective import ObjectiveConfig
from megarl.objective.gates import apply_gate
from megarl.objective.tokens import TokenBatch
from megarl.rules import Rule
from tests.objective.gating import CLIP, CONTROLS, OFF, gated, objective, rules
from tests.objective.tokens import make_tokens

CLIP_OFF = {"kind": "constant", "low": 1.0, "high": math.inf}
GATES = {
    "ppo": (PpoGate(dual=2.5), CLIP),
    "ppo off": (PpoGate(), CLIP_OFF),
    "ce_gppo": (CeGppoGate(kind="ce_gppo", low_scale=0.6, high_scale=0.4, dual=2.5), CLIP),
    "sapo": (SapoGate(kind="sapo"), OFF),
    "aspo": (AspoGate(kind="aspo", cap=1.8), CLIP),
    "cispo": (CispoGate(kind="cispo", cap=1.3, floor=0.7), OFF),
    "dppo": (DppoGate(kind="dppo", cap=1.5), OFF),
}
ALL_GATES = [*GATES, "geometric"]


def config_of(name: str, level: str = "token") -> ObjectiveConfig:
    if name == "geometric":
        return objective(PpoGate(), {"kind": "log"}, level="geometric")
    return objective(*GATES[name], level=level)


KINKS = [0.8, 1.28, 2.5, 1.8, 1 / 1.8, 1.3, 0.7, 1.5, math.exp(0.4), math.exp(-0.4)]
LENGTHS = [4, 1, 7, 0, 4]


def random_tokens(seed: int, level: str) -> TokenBatch:
    """Tokens whose ratio at the level is away from every kink; the advantage differs from token to token."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(LENGTHS)
    spread = 2.0 if level == "sequence" else 0.7
    while True:
        noise_T, advantage_T = torch.randn(2, num_tokens, generator=generator, dtype=torch.float64)
        old_logp_T = -torch.rand(num_tokens, generator=generator, dtype=torch.float64) * 3 - 2
        tokens = make_tokens(
            LENGTHS,
            logp=old_logp_T + spread * noise_T,
            old_logp=old_logp_T,
            advantage=advantage_T,
            weight=noise_T.cos(),
        )
        log_ratio_T = tokens.logp_T - tokens.old_logp_T
        log_ratio_T = tokens.sequence_mean(log_ratio_T) if level == "sequence" else log_ratio_T
        moved_T = tokens.logp_T.exp() - old_logp_T.exp()
        gaps_T = torch.cat([(log_ratio_T - math.log(kink)).abs() for kink in KINKS] + [(moved_T.abs() - 0.15).abs()])
        if gaps_T.min() > 1e-4 and tokens.logp_T.max() < 0:
            return tokens


def central_differences(loss, logp_T: Tensor, step: float = 1e-6) -> Tensor:
    rows = torch.eye(len(logp_T), dtype=torch.float64) * step
    return torch.stack([(loss(logp_T + row) - loss(logp_T - row)) / (2 * step) for row in rows])


def weighted_loss(config: ObjectiveConfig, tokens: TokenBatch, logp_T: Tensor) -> Tensor:
    moved = tokens.replace(logp_T=logp_T)
    return (moved.weight_T * gated(config, moved).loss_T).sum()


def autograd(config: ObjectiveConfig, tokens: TokenBatch) -> Tensor:
    logp_T = tokens.logp_T.clone().requires_grad_()
    return torch.autograd.grad(weighted_loss(config, tokens, logp_T), logp_T)[0]


DIFFERENTIABLE = [(name, level) for name in ("ppo", "ppo off", "ce_gppo", "sapo") for level in ("token", "sequence")]
DIFFERENTIABLE += [("aspo", "token"), ("geometric", "geometric")]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "level"), DIFFERENTIABLE)
def test_gradient_is_the_derivative_of_the_loss(name, level, seed) -> None:
    config, tokens = config_of(name, level), random_tokens(seed, level)
    numeric_T = central_differences(lambda logp_T: weighted_loss(config, tokens, logp_T), tokens.logp_T)
    assert torch.allclose(autograd(config, tokens), numeric_T, rtol=1e-6, atol=1e-7)


def potential(name: str, ratio: float, advantage: float, moved: float) -> float:
    """A function of log r whose derivative is g of CISPO and DPPO, whose losses hold their weight fixed."""
    low, cap = {"cispo": (0.7, 1.3), "dppo": (0.0, 1.5)}[name]
    if name == "dppo" and ((advantage > 0 and moved > 0.15) or (advantage < 0 and moved < -0.15)):
        return 0.0
    bounded = min(max(ratio, low), cap)
    return advantage * (ratio if bounded == ratio else bounded * (1 + math.log(ratio / bounded)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["cispo", "dppo"])
def test_gradient_of_fixed_weights_is_the_derivative_of_a_potential(name, seed) -> None:
    tokens = random_tokens(seed, "token")

    def loss(logp_T: Tensor) -> Tensor:
        ratios, moved = (logp_T - tokens.old_logp_T).exp(), logp_T.exp() - tokens.old_logp_T.exp()
        columns = zip(ratios.tolist(), tokens.advantage_T.tolist(), moved.tolist(), strict=True)
        values = torch.tensor([potential(name, *column) for column in columns], dtype=torch.float64)
        return -(tokens.weight_T * values).sum()

    numeric_T = central_differences(loss, tokens.logp_T)
    assert torch.allclose(autograd(objective(*GATES[name]), tokens), numeric_T, rtol=1e-6, atol=1e-7)


def seq_mean_token_mean(tokens: TokenBatch) -> Tensor:
    return 1 / (tokens.lengths()[tokens.sequence_T] * tokens.num_sequences)


@pytest.mark.parametrize("name", ["ppo", "ce_gppo", "sapo", "cispo"])
def test_gspo_and_gspo_token_have_one_gradient(name) -> None:
    gate, clip = GATES[name]
    for seed in range(5):
        tokens = random_tokens(seed, "sequence")
        advantage_B = torch.tensor([1.0, -0.5, -2.0, 9.0, 0.7], dtype=torch.float64)
        tokens = tokens.replace(advantage_T=advantage_B[tokens.sequence_T], weight_T=seq_mean_token_mean(tokens))
        sequence_T = autograd(objective(gate, clip, level="sequence"), tokens)
        token_T = autograd(objective(gate, clip, level="sequence_token"), tokens)
        assert sequence_T.abs().max() > 0.01
        assert torch.allclose(sequence_T, token_T, rtol=1e-12, atol=1e-15)
        one, other = (gated(objective(gate, clip, level=level), tokens) for level in ("sequence", "sequence_token"))
        assert torch.equal(one.rule_T, other.rule_T)
        assert torch.allclose(one.loss_T, other.loss_T, rtol=1e-12)


PPO_FAMILY_CLIPS = [
    CLIP,
    {"kind": "constant", "low": 1.0, "high": math.inf},
    {"kind": "log"},
    {"kind": "dcpo"},
    {"kind": "flexec"},
]
ADVANTAGES = st.one_of(st.just(0.0), st.floats(-4, 4, width=16))


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.floats(-30, 30), ADVANTAGES, st.floats(-8, 0)), max_size=12),
    clip=st.sampled_from(PPO_FAMILY_CLIPS),
    dual=st.sampled_from([math.inf, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_ppo_family_has_no_gradient_exactly_where_a_rule_acted(tokens, clip, dual, dtype) -> None:
    logs, advantages, olds = ([token[column] for token in tokens] for column in range(3))
    logp_T = torch.tensor([log + old for log, old in zip(logs, olds, strict=True)], dtype=dtype).requires_grad_()
    batch = make_tokens([len(tokens)], logp=logp_T, old_logp=olds, advantage=advantages, dtype=dtype)
    result = gated(objective(PpoGate(dual=dual), clip), batch)
    assert result.loss_T.isfinite().all()
    (grad_T,) = torch.autograd.grad(result.loss_T.sum(), logp_T)
    acted_T = result.rule_T != 0
    assert torch.equal(grad_T == 0, acted_T | (batch.advantage_T == 0))
    expected_T = torch.where(acted_T, 0.0, result.ratio_T * batch.advantage_T)
    assert torch.allclose(-grad_T, expected_T, rtol=1e-6)


@pytest.mark.parametrize("name", ALL_GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_advantage_extreme_ratios_and_infinite_bounds_stay_finite(name, dtype) -> None:
    logp_T = torch.tensor([-1e4, -40.0, -1e-8, -1.0, -1.0], dtype=dtype, requires_grad=True)
    old = [-1e-8, -1e-8, -1e4, -40.0, -1.0]
    for advantage in (0.0, 2.0, -2.0):
        tokens = make_tokens(logp=logp_T, old_logp=old, advantage=advantage, dtype=dtype, lengths=[1] * 5)
        config = config_of(name)
        for bounds in (None, (0.0, math.inf)):
            if bounds is None:
                result = gated(config, tokens)
            else:
                low_T, high_T = (torch.full_like(tokens.old_logp_T, bound) for bound in bounds)
                result = apply_gate(
                    config, tokens, CONTROLS, advantage_T=tokens.advantage_T, low_T=low_T, high_T=high_T
                )
            (grad_T,) = torch.autograd.grad(result.loss_T.sum(), logp_T)
            assert result.loss_T.dtype == result.ratio_T.dtype == dtype
            assert result.rule_T.dtype == torch.int32
            assert result.loss_T.isfinite().all()
            assert grad_T.isfinite().all()
            if advantage == 0:
                assert not result.loss_T.any()
                assert not grad_T.any()
            if name not in ("cispo", "dppo"):
                is_saturated_T = (result.rule_T & int(Rule.SATURATED)) != 0
                assert is_saturated_T.tolist() == [True, True, True, True, False]
                assert not grad_T[is_saturated_T].any()


@pytest.mark.parametrize("name", ["cispo", "dppo"])
def test_weights_without_gradient_do_not_saturate(name) -> None:
    # log r = 30 with p = e^-8: the weight is the cap, and log p still has its gradient.
    logp_T = torch.tensor([-8.0], dtype=torch.float64, requires_grad=True)
    result = gated(config_of(name), make_tokens(logp=logp_T, old_logp=[-38.0], advantage=[-1.0]))
    (grad_T,) = torch.autograd.grad(result.loss_T.sum(), logp_T)
    assert grad_T.tolist() == [{"cispo": 1.3, "dppo": 1.5}[name]]
    assert rules(result) == [Rule.CAP]


@pytest.mark.parametrize("name", ALL_GATES)
def test_float32_agrees_with_float64(name) -> None:
    tokens = random_tokens(11, "token")
    narrow = make_tokens(
        LENGTHS,
        dtype=torch.float32,
        **{column: getattr(tokens, f"{column}_T") for column in ("logp", "old_logp", "advantage", "weight")},
    )
    config = config_of(name)
    assert torch.allclose(autograd(config, narrow).double(), autograd(config, tokens), rtol=1e-5, atol=1e-6)
    assert torch.equal(gated(config, narrow).rule_T, gated(config, tokens).rule_T)


@pytest.mark.parametrize("name", ALL_GATES)
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_tokens(name, lengths) -> None:
    logp_T = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    result = gated(config_of(name), make_tokens(lengths, logp=logp_T))
    assert result.loss_T.shape == result.ratio_T.shape == result.rule_T.shape == (0,)
    result.loss_T.sum().backward()
    assert logp_T.grad is not None


@pytest.mark.parametrize("clip", [*PPO_FAMILY_CLIPS, OFF, {"kind": "archer"}])
@pytest.mark.parametrize("name", ALL_GATES)
def test_nothing_waits_for_the_device(name, clip) -> None:
    # Tensors without data: whatever would read a value on the host raises.
    tokens = _without_data(random_tokens(0, "token"))
    config = config_of(name).model_copy(update={"clip": objective(PpoGate(), clip).clip})
    result = gated(config, tokens.replace(logp_T=tokens.logp_T.requires_grad_()))
    result.loss_T.sum().backward()
    assert result.loss_T.is_meta
    assert result.loss_T.shape == result.rule_T.shape == tokens.logp_T.shape


def _without_data(tokens: TokenBatch) -> TokenBatch:
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    moved = {name: value.to("meta") for name, value in values.items() if isinstance(value, Tensor)}
    columns_T = {name: column_T.to("meta") for name, column_T in tokens.columns_T.items()}
    return replace(tokens, **moved, columns_T=columns_T)
