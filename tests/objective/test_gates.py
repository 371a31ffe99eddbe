"""Gates by hand and against the published table of gradients."""

import math

import pytest
import torch

from megarl.config.gate import AspoGate, CeGppoGate, CispoGate, DppoGate, PpoGate, SapoGate, UpGate
from megarl.objective.bounds import token_bounds
from megarl.objective.gates import apply_gate
from megarl.objective.tokens import Choices, Controls
from megarl.rules import Rule
from tests.objective.gating import CLIP, CONTROLS, OFF, gated, gradient, objective, rules
from tests.objective.tokens import make_tokens

# The published slice: old probability .3, bounds .8 and 1.28, dual and cap 3; g for A = 1 and A = -1 per ratio.
TABLE_RATIOS = [0.45, 0.75, 1.1, 1.6]
TABLE = {
    "ppo": (PpoGate(), CLIP, [0.45, 0.75, 1.1, 0], [0, 0, -1.1, -1.6]),
    "dual": (PpoGate(dual=3.0), CLIP, [0.45, 0.75, 1.1, 0], [0, 0, -1.1, -1.6]),
    "ce_gppo": (
        CeGppoGate(kind="ce_gppo", low_scale=0.75, high_scale=1.0),
        CLIP,
        [0.45, 0.75, 1.1, 1.28],
        [-0.6, -0.6, -1.1, -1.6],
    ),
    "cispo": (CispoGate(kind="cispo", cap=1.28), OFF, [0.45, 0.75, 1.1, 1.28], [-0.45, -0.75, -1.1, -1.28]),
    "sapo": (
        SapoGate(kind="sapo"),
        OFF,
        [0.417614, 0.738402, 1.097255, 1.464219],
        [-0.414472, -0.737227, -1.096974, -1.451181],
    ),
    "dppo": (DppoGate(kind="dppo", low=0.15, high=0.15), OFF, [0.45, 0.75, 1.1, 0], [0, -0.75, -1.1, -1.6]),
    "aspo": (AspoGate(kind="aspo", cap=3.0), CLIP, [1 / 0.45, 1 / 0.75, 1 / 1.1, 0], [0, 0, -1.1, -1.6]),
    "dcpo": (PpoGate(), {"kind": "dcpo"}, [0.45, 0.75, 1.1, 0], [0, -0.75, -1.1, -1.6]),
    "flexec": (PpoGate(), {"kind": "flexec"}, [0.45, 0.75, 1.1, 0], [0, -0.75, -1.1, -1.6]),
}
AT_1_25 = {"ppo": 1.25, "dual": 1.25, "ce_gppo": 1.25, "dcpo": 1.25, "flexec": 1.25, "sapo": 1.230670, "aspo": 0.8}


@pytest.mark.parametrize("name", TABLE)
def test_published_table(name) -> None:
    gate, clip, positive, negative = TABLE[name]
    config = objective(gate, clip)
    assert gradient(config, TABLE_RATIOS, [1.0] * 4)[0].tolist() == pytest.approx(positive, abs=1e-6)
    assert gradient(config, TABLE_RATIOS, [-1.0] * 4)[0].tolist() == pytest.approx(negative, abs=1e-6)
    if name in AT_1_25:
        assert gradient(config, [1.25], [1.0])[0].tolist() == pytest.approx([AT_1_25[name]], abs=1e-6)


def test_ppo_values_flags_and_ties_by_hand() -> None:
    config = objective(PpoGate(dual=3.0), {"kind": "constant", "low": 0.5, "high": 0.25})
    ratios, advantages = [0.25, 0.25, 0.5, 1.25, 2.0, 2.0, 4.0, 3.0], [2, -2, -2, 2, 2, -2, -2, 0]
    g_T, result = gradient(config, ratios, advantages)
    assert result.loss_T.tolist() == pytest.approx([-0.5, 1.0, 1.0, -2.5, -2.5, 4.0, 6.0, 0.0])
    expected = [Rule(0)] * 8
    expected[1], expected[4], expected[6] = Rule.CLIP_LOW, Rule.CLIP_HIGH, Rule.DUAL
    # exp(log(r)) may miss a tie by one rounding, so ties are checked at exactly r = 1 below.
    assert [rules(result)[index] for index in (0, 1, 4, 5, 6, 7)] == [expected[index] for index in (0, 1, 4, 5, 6, 7)]
    assert g_T[[0, 1, 4, 5, 6, 7]].tolist() == pytest.approx([0.5, 0, 0, -4, 0, 0])
    assert result.ratio_T.tolist() == pytest.approx(ratios)
    assert not result.ratio_T.requires_grad


@pytest.mark.parametrize("gate", [PpoGate(), CeGppoGate(kind="ce_gppo"), AspoGate(kind="aspo")])
def test_a_ratio_on_its_bound_is_inside(gate) -> None:
    config = objective(gate, {"kind": "constant", "low": 0.0, "high": 0.0})
    g_T, result = gradient(config, [1.0, 1.0], [3.0, -3.0])
    assert g_T.tolist() == [3.0, -3.0]
    assert rules(result) == [Rule(0), Rule(0)]


def test_low_one_and_high_inf_turn_clipping_off() -> None:
    config = objective(PpoGate(), {"kind": "constant", "low": 1.0, "high": math.inf})
    g_T, result = gradient(config, [1e-6, 1e-6, 1e6, 1e6], [1, -1, 1, -1])
    assert g_T.tolist() == pytest.approx([1e-6, -1e-6, 1e6, -1e6])
    assert rules(result) == [Rule(0)] * 4


@pytest.mark.parametrize("gate", [PpoGate(dual=10.0), CeGppoGate(kind="ce_gppo", dual=10.0)])
def test_dual_clip_drops_only_rising_tokens_of_bad_responses(gate) -> None:
    g_T, result = gradient(objective(gate, {"kind": "log", "high": math.inf}), [9.9, 10.1, 10.1], [-1, -1, 1])
    assert g_T.tolist() == pytest.approx([-9.9, 0, 10.1])
    assert rules(result) == [Rule(0), Rule.DUAL, Rule(0)]
    assert result.loss_T.tolist() == pytest.approx([9.9, 10.0, -10.1])


def test_ce_gppo_beyond_its_bounds() -> None:
    gate = CeGppoGate(kind="ce_gppo", low_scale=0.5, high_scale=2.0)
    g_T, result = gradient(objective(gate, CLIP), [0.4, 2.56, 0.4, 2.56], [-3, 3, 3, -3])
    assert g_T.tolist() == pytest.approx([-0.5 * 0.8 * 3, 2 * 1.28 * 3, 0.4 * 3, -2.56 * 3])
    assert rules(result) == [Rule.CLIP_LOW, Rule.CLIP_HIGH, Rule(0), Rule(0)]
    # Continuous: bound + slope * distance in log r, here log(.4 / .8) = -log 2 and log(2.56 / 1.28) = log 2.
    assert result.loss_T[:2].tolist() == pytest.approx(
        [3 * (0.8 - 0.4 * math.log(2)), -3 * (1.28 + 2.56 * math.log(2))]
    )
    # Scales of 0 are PPO; scales of 1 with bounds off are too.
    zero = CeGppoGate(kind="ce_gppo", low_scale=0.0, high_scale=0.0, dual=math.inf)
    assert gradient(objective(zero, CLIP), [0.4, 2.56], [-3, 3])[0].tolist() == [0, 0]
    off = {"kind": "constant", "low": 1.0, "high": math.inf}
    assert gradient(objective(zero, off), [0.4, 2.56], [-3, 3])[0].tolist() == pytest.approx([-1.2, 7.68])


def test_cispo_limits_the_weight_and_drops_nothing() -> None:
    gate = CispoGate(kind="cispo", cap=2.0, floor=0.5)
    g_T, result = gradient(objective(gate), [0.1, 0.6, 3.0, 3.0, 3.0], [1, 1, 1, -1, 0])
    assert g_T.tolist() == pytest.approx([0.5, 0.6, 2.0, -2.0, 0])
    assert rules(result) == [Rule.CAP, Rule(0), Rule.CAP, Rule.CAP, Rule(0)]
    # -sg[w] A logp with p = .03.
    assert result.loss_T[0].item() == pytest.approx(-0.5 * math.log(0.03))


def test_sapo_by_hand() -> None:
    config = objective(SapoGate(kind="sapo", positive_temperature=2.0, negative_temperature=1.0))
    g_T, result = gradient(config, [1.0, 1.5, 2.0, 1.0], [3.0, 3.0, -3.0, 0.0])
    one = 1 / (1 + math.exp(-1.0))  # 2 * (1.5 - 1) and 1 * (2 - 1)
    assert g_T.tolist() == pytest.approx([3.0, 4 * one * (1 - one) * 1.5 * 3, -4 * one * (1 - one) * 2 * 3, 0])
    assert result.loss_T.tolist() == pytest.approx([-3 * 2 * 0.5, -3 * 2 * one, 3 * 4 * one, 0])
    assert rules(result) == [Rule(0)] * 4


def test_sapo_keeps_its_small_gradients_in_float32() -> None:
    # r = 21: 4 s (1 - s) r with 1 - s = e^-20, below float32's rounding of s.
    logp_T = torch.tensor([math.log(21.0) - 8], dtype=torch.float32, requires_grad=True)
    tokens = make_tokens(logp=logp_T, old_logp=-8.0, advantage=1.0, dtype=torch.float32)
    (grad_T,) = torch.autograd.grad(gated(objective(SapoGate(kind="sapo")), tokens).loss_T.sum(), logp_T)
    assert -grad_T.item() == pytest.approx(4 * math.exp(-20) * 21, rel=1e-4)


def test_dppo_kl_by_hand() -> None:
    # q = .3: p = .48 (r 1.6): .3 log(.625) + .7 log(.7 / .52) = .067076; p = .405 (r 1.35): .024144;
    # p = .15 (r .5): .3 log 2 + .7 log(.7 / .85) = .072035.
    gate = DppoGate(kind="dppo", divergence="kl", low=0.07, high=0.05)
    g_T, result = gradient(objective(gate), [1.6, 1.35, 0.5, 1.6, 0.5], [1, 1, -1, -1, 1])
    assert g_T.tolist() == pytest.approx([0, 1.35, 0, -1.6, 0.5])
    assert rules(result) == [Rule.DPPO, Rule(0), Rule.DPPO, Rule(0), Rule(0)]
    looser = DppoGate(kind="dppo", divergence="kl", low=0.0721, high=0.0671)
    assert gradient(objective(looser), [1.6, 0.5], [1, -1])[0].tolist() == pytest.approx([1.6, -0.5])
    tighter = DppoGate(kind="dppo", divergence="kl", low=0.0719, high=0.0670)
    assert gradient(objective(tighter), [1.6, 0.5], [1, -1])[0].tolist() == [0, 0]


def test_dppo_caps_the_weight_of_what_it_keeps() -> None:
    # q = .001, p = .03 (r 30): moved by .029 only.
    g_T, result = gradient(objective(DppoGate(kind="dppo")), [30.0, 30.0, 30.0], [2.0, -2.0, 0.0], old=0.001)
    assert g_T.tolist() == pytest.approx([40.0, -40.0, 0.0])
    assert rules(result) == [Rule.CAP, Rule.CAP, Rule(0)]
    assert result.loss_T[0].item() == pytest.approx(-2 * 20 * math.log(0.03))


def test_dppo_measures_from_the_ratios_anchor() -> None:
    # p = .45; old .3 is .15 away, the engine's .42 only .03.
    config = objective(DppoGate(kind="dppo", low=0.1, high=0.1), anchor="behavior")
    g_T, result = gradient(config, [1.5], [1.0], behavior_logp=[math.log(0.42)])
    assert g_T.tolist() == pytest.approx([0.45 / 0.42])
    assert rules(gradient(objective(DppoGate(kind="dppo", low=0.1, high=0.1)), [1.5], [1.0])[1]) == [Rule.DPPO]
    assert rules(result) == [Rule(0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_dppo_of_certain_tokens_is_finite(divergence, dtype) -> None:
    # The last one rises from 1 - 1e-6 to what rounds to 1: no distance.
    logp_T = torch.tensor([0.0, 0.0, -1e-9, -90.0, 0.0], dtype=dtype, requires_grad=True)
    old_logp, advantage = [0.0, -0.7, 0.0, 0.0, -1e-6], [1, 1, -1, -1, 1]
    tokens = make_tokens(logp=logp_T, old_logp=old_logp, advantage=advantage, dtype=dtype)
    result = gated(objective(DppoGate(kind="dppo", divergence=divergence)), tokens)
    assert result.loss_T.isfinite().all()
    assert rules(result) == [Rule(0), Rule.DPPO, Rule(0), Rule.DPPO, Rule(0)]


def test_aspo_by_hand() -> None:
    config = objective(AspoGate(kind="aspo", cap=3.0), CLIP)
    ratios, advantages = [0.5, 0.2, 1.5, 0.5, 1.5, 4.0, 0.2, 4.0], [2, 2, 2, -2, -2, -2, 0, 0]
    g_T, result = gradient(config, ratios, advantages)
    assert g_T.tolist() == pytest.approx([4, 6, 0, 0, -3, -6, 0, 0])
    assert rules(result) == [Rule(0), Rule.CAP, Rule.CLIP_HIGH, Rule.CLIP_LOW, Rule(0), Rule.CAP, Rule(0), Rule(0)]
    # A / r and -A r; beyond the cap c A (1 + log(1/r) - log c) and the like; at the bound where clipped.
    capped_up, capped_down = 6 * (1 + math.log(5 / 3)), 6 * (1 + math.log(4 / 3))
    assert result.loss_T.tolist() == pytest.approx([4, capped_up, 2 / 1.28, 1.6, 3, capped_down, 0, 0])


def test_dual_clip_at_the_upper_bound() -> None:
    # A < 0: kept between .8 and 1.28, and 2.0 is above both; a lower `dual` still holds.
    g_T, result = gradient(objective(PpoGate(dual_at_high=True), CLIP), [0.5, 1.2, 2.0, 2.0], [-1, -1, -1, 1])
    assert g_T.tolist() == pytest.approx([0, -1.2, 0, 0])
    assert result.loss_T.tolist() == pytest.approx([0.8, 1.2, 1.28, -1.28])
    assert rules(result) == [Rule.CLIP_LOW, Rule(0), Rule.DUAL, Rule.CLIP_HIGH]
    g_T, result = gradient(objective(PpoGate(dual=1.1, dual_at_high=True), CLIP), [1.05, 1.2], [-1, -1])
    assert g_T.tolist() == pytest.approx([-1.05, 0])


def test_rescue_keeps_clipped_tokens_by_their_distance() -> None:
    # hi = 1.28, lo = .8, noise from .75 to 1.25. A > 0 at r = 1.4: kept where u <= 1.28 / 1.4 = .914286, of which there
    # is (.914286 - .75) / .5 = .328571; from 1.28 / .75 = 1.706667 on none. A < 0 at r = .7: u >= 1.142857: .214286.
    size = 20_000
    config = objective(PpoGate(rescue=0.25), CLIP)
    for ratio, advantage, share in (
        (1.4, 2.0, 0.328571),
        (1.70, 2.0, 0.005882),
        (1.71, 2.0, 0.0),
        (0.7, -2.0, 0.214286),
    ):
        g_T, result = gradient(config, [ratio] * size, [advantage] * size)
        kept_T = g_T != 0
        assert g_T[kept_T].tolist() == pytest.approx([ratio * advantage] * int(kept_T.sum()))
        assert kept_T.double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(share / size) + 1e-12)
        flag = Rule.CLIP_HIGH if advantage > 0 else Rule.CLIP_LOW
        assert torch.equal(result.rule_T, torch.where(kept_T, 0, int(flag)).int())
    inside, _ = gradient(config, [1.2, 0.9, 0.5, 5.0], [1.0, -1.0, 1.0, -1.0])
    assert inside.tolist() == pytest.approx([1.2, -0.9, 0.5, -5.0])


def test_a_rescue_belongs_to_the_token_and_the_step() -> None:
    config = objective(PpoGate(rescue=0.25), CLIP)

    def kept(step: int, ids: list[int]) -> list[list[bool]]:
        tokens = make_tokens([40] * 2, logp=math.log(0.42), old_logp=math.log(0.3), advantage=1.0, sample_ids=ids)
        low_T, high_T = torch.full_like(tokens.logp_T, 0.8), torch.full_like(tokens.logp_T, 1.28)
        controls = Controls(step=step, seed=0)
        result = apply_gate(config, tokens, controls, advantage_T=tokens.advantage_T, low_T=low_T, high_T=high_T)
        return (result.rule_T == 0).reshape(2, 40).tolist()

    assert kept(3, [5, 9]) == kept(3, [9, 5])[::-1]
    assert kept(3, [5, 9]) != kept(4, [5, 9])
    assert kept(3, [5, 9])[0] != kept(3, [5, 9])[1]


def test_a_response_with_one_ratio_is_rescued_whole() -> None:
    config = objective(PpoGate(rescue=0.25), CLIP, level="sequence")
    g_T, _ = gradient(config, [1.4] * 400, [1.0] * 400, lengths=[4] * 100)
    kept_BT = (g_T != 0).reshape(100, 4)
    assert torch.equal(kept_BT.any(1), kept_BT.all(1))
    assert 10 < kept_BT.all(1).sum() < 60


UP_CLIP = {"kind": "constant", "low": 0.2, "high": math.inf}


def test_up_by_hand() -> None:
    # A > 0: value -A and g = A at any ratio. A < 0: -A max(r, .8), at most 3 |A|; 3.1 is beyond the dual bound.
    config = objective(UpGate(kind="up", dual=3.0), UP_CLIP)
    ratios, advantages = [0.1, 1.0, 2.5, 0.5, 0.9, 2.5, 3.1, 0.5], [2, 2, 2, -2, -2, -2, -2, 0]
    g_T, result = gradient(config, ratios, advantages)
    assert g_T.tolist() == pytest.approx([2, 2, 2, 0, -1.8, -5, 0, 0])
    assert result.loss_T.tolist() == pytest.approx([-2, -2, -2, 1.6, 1.8, 5, 6, 0])
    assert rules(result) == [Rule(0)] * 3 + [Rule.CLIP_LOW, Rule(0), Rule(0), Rule.DUAL, Rule(0)]


def test_up_is_the_gradient_of_the_self_anchored_ratio() -> None:
    """-A p / sg[p] where A > 0, PPO's clipped surrogate where not, differentiated as they stand."""
    draw = torch.Generator().manual_seed(3)
    old_logp_T, noise_T, advantage_T = torch.randn(3, 40, generator=draw, dtype=torch.float64)
    logp_T = (old_logp_T.abs().neg() + 0.5 * noise_T).requires_grad_()
    ratio_T = (logp_T - old_logp_T.abs().neg()).exp()
    clipped_T = torch.maximum(-advantage_T * ratio_T, -advantage_T * ratio_T.clamp(min=0.8))
    negative_T = torch.minimum(clipped_T, -3.0 * advantage_T)
    expected_T = torch.where(advantage_T > 0, -advantage_T * (logp_T - logp_T.detach()).exp(), negative_T)
    (wanted_T,) = torch.autograd.grad(expected_T.sum(), logp_T)
    tokens = make_tokens(logp=logp_T, old_logp=old_logp_T.abs().neg(), advantage=advantage_T)
    result = gated(objective(UpGate(kind="up"), UP_CLIP), tokens)
    assert torch.allclose(torch.autograd.grad(result.loss_T.sum(), logp_T)[0], wanted_T, rtol=1e-12)
    assert torch.allclose(result.loss_T, expected_T, rtol=1e-12)


def test_up_does_not_feel_the_overflow_clamp_where_it_has_no_ratio() -> None:
    g_T, result = gradient(objective(UpGate(kind="up"), UP_CLIP), [math.exp(25)] * 2, [1.0, -1.0], old=1e-12)
    assert g_T.tolist() == [1.0, 0.0]
    assert rules(result) == [Rule(0), Rule.DUAL | Rule.SATURATED]


@pytest.mark.parametrize("level", ["sequence", "sequence_token"])
def test_gspo_by_hand(level) -> None:
    # s = sqrt(1.1 * 1.3) = 1.195826 with A = 2, clipped at 1.1; s = (.9 * .8 * 1.2)^(1/3) = .952440 with A = -3.
    config = objective(PpoGate(), {"kind": "constant", "low": 0.1, "high": 0.1}, level=level)
    mean = (0.9 * 0.8 * 1.2) ** (1 / 3)
    g_T, result = gradient(
        config,
        [1.1, 1.3, 0.9, 0.8, 1.2],
        [2, 2, -3, -3, -3],
        lengths=[2, 3],
        weight=[1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6],
    )
    assert result.ratio_T.tolist() == pytest.approx([math.sqrt(1.43)] * 2 + [mean] * 3)
    assert result.loss_T.tolist() == pytest.approx([-2.2] * 2 + [3 * mean] * 3)
    # -mean_i A_i s_i has d/d logp_it = A_i s_i / n_i / 2.
    assert g_T.tolist() == pytest.approx([0, 0] + [-3 * mean / 3 / 2] * 3)
    assert rules(result) == [Rule.CLIP_HIGH] * 2 + [Rule(0)] * 3


def test_gmpo_by_hand() -> None:
    # exp(.4) = 1.4918. A = 2: 1.2 and 3 -> bounded logs log 1.2 and .4; .1 is not bounded. A = -1: .5 -> -.4, 4 stays.
    config = objective(PpoGate(), {"kind": "log", "low": 0.4, "high": 0.4}, level="geometric")
    ratios, advantages = [1.2, 3.0, 0.1, 0.5, 4.0], [2, 2, 2, -1, -1]
    first = math.exp((math.log(1.2) + 0.4 + math.log(0.1)) / 3)
    second = math.exp((-0.4 + math.log(4)) / 2)
    g_T, result = gradient(config, ratios, advantages, lengths=[3, 2], weight=[1 / 6] * 3 + [1 / 4] * 2)
    assert result.loss_T.tolist() == pytest.approx([-2 * first] * 3 + [second] * 2)
    assert g_T.tolist() == pytest.approx([2 * first / 6, 0, 2 * first / 6, 0, -second / 4])
    assert rules(result) == [Rule(0), Rule.CLIP_HIGH, Rule(0), Rule.CLIP_LOW, Rule(0)]
    assert result.ratio_T.tolist() == pytest.approx(ratios)


def test_archer_and_bapo_bounds_reach_the_gate() -> None:
    # Entropy 9 is the response's only high one of five: its upper bound is 1.4, so 1.3 is inside.
    config = objective(PpoGate(), {"kind": "archer"})
    g_T, result = gradient(config, [1.3, 1.3, 1, 1, 1], [1.0] * 5, old_entropy=[9.0, 1, 2, 3, 4])
    assert g_T.tolist() == pytest.approx([1.3, 0, 1, 1, 1])
    assert rules(result)[:2] == [Rule(0), Rule.CLIP_HIGH]
    config = objective(PpoGate(), {"kind": "bapo"})
    tokens = make_tokens(logp=[math.log(0.26), math.log(0.4)], old_logp=math.log(0.2), advantage=1.0)
    chosen = Choices(weight_T=torch.ones(2), rule_T=torch.zeros(2, dtype=torch.int32), bapo_bounds=(0.6, 1.5))
    low_T, high_T = token_bounds(config.clip, tokens, CONTROLS, chosen)
    result = apply_gate(config, tokens, CONTROLS, advantage_T=tokens.advantage_T, low_T=low_T, high_T=high_T)
    assert rules(result) == [Rule(0), Rule.CLIP_HIGH]
