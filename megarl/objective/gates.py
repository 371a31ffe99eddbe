"""Gates: what ratio, advantage and bounds make of a token's gradient. T = response tokens.

Every gate is a loss per token with -d loss_T.sum() / d logp_T = g:
PPO      r A where r is inside the bound of A's side, 0 outside; with dual clip also 0 where A < 0 and r > dual
CE-GPPO  as PPO, but beta_1 lo A where A < 0 and r < lo, beta_2 hi A where A > 0 and r > hi
CISPO    min(max(r, floor), cap) A
SAPO     4 s (1 - s) r A, s = sigmoid(tau (r - 1))
DPPO     min(r, cap) A where the probability has not moved too far, 0 elsewhere
ASPO     A > 0: A / r, at most cap A, 0 where r > hi; A < 0: r A, at most cap A in size, 0 where r < lo
UP       A > 0: A; A < 0: as PPO
A ratio equal to a bound is inside. A = 0 gives loss 0 and g = 0. lo = 0 and hi = inf turn a side off. At level
"sequence" r is the response's, and g is spread over its tokens by the mean (CISPO multiplies each own log p, which is
the same for one advantage per response). Where the overflow clamp of the log ratio acts, g is 0 (Rule.SATURATED), but
for CISPO and DPPO, whose r is a weight without gradient, and for UP where A > 0, which has no r.
The losses' values differ between gates and cannot be compared; their gradients can.
"""

import math
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from megarl.config.gate import AspoGate, CeGppoGate, CispoGate, DppoGate, Gate, PpoGate, SapoGate, UpGate
from megarl.config.objective import ObjectiveConfig
from megarl.objective.bounds import clipped_sides
from megarl.objective.ratio import anchor_logp, log_ratio, saturated
from megarl.objective.token_random import token_uniforms
from megarl.objective.tokens import Controls, TokenBatch
from megarl.rules import Rule

_NOISE_STREAM = 1
_SMALLEST_COMPLEMENT = 1e-8
"""1 - p is at least this in the Bernoulli KL, as in DPPO's code; log p has no more digits than that near 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The policy loss of some tokens."""

    loss_T: Tensor
    """Unweighted; differentiable in `logp_T`."""
    ratio_T: Tensor
    """r at the configured level and anchor, detached: what the bounds were compared with (level "geometric": the
    token's own)."""
    rule_T: Tensor
    """int32: CLIP_LOW, CLIP_HIGH, DUAL, CAP, DPPO, SATURATED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """A gate without A: loss = -A * surrogate, g = A * slope. Detached."""

    surrogate_T: Tensor
    slope_T: Tensor
    """d surrogate / d log r."""
    rule_T: Tensor
    without_ratio_T: Tensor | None = None
    """bool: the slope is in the token's own log p, and there is no ratio that could be clamped."""


def apply_gate(
    objective: ObjectiveConfig,
    tokens: TokenBatch,
    controls: Controls,
    *,
    advantage_T: Tensor,
    low_T: Tensor,
    high_T: Tensor,
) -> GateResult:
    """The loss, ratio and rules of every token, [T], under `objective.gate` and `objective.ratio`.

    `advantage_T` is the shaped one, `low_T` and `high_T` the bounds; none carries a gradient. CISPO, SAPO and DPPO read
    no bounds. `controls` say what NSR's noise is drawn from. Aggregation and token weights are the caller's: at level
    "geometric" every token of a response carries the response's loss, so seq-mean-token-mean weights give GMPO's mean
    over responses.

    Raises:
        ValueError: anchor "behavior" without behavior log-probs.
    """
    log_ratio_T = log_ratio(objective.ratio, tokens)
    ratio_T = log_ratio_T.detach().exp()
    saturated_T = _flag(saturated(objective.ratio, tokens), Rule.SATURATED)
    if objective.ratio.level == "geometric":
        sides_T = clipped_sides(ratio_T, advantage_T, low_T, high_T)
        bounded_T = torch.where(sides_T != 0, torch.where(advantage_T > 0, high_T, low_T).log(), log_ratio_T)
        loss_T = -advantage_T * tokens.sequence_mean(bounded_T).exp()
        return GateResult(loss_T=loss_T, ratio_T=ratio_T, rule_T=sides_T | saturated_T)

    if isinstance(objective.gate, PpoGate) and objective.gate.rescue:
        noise_T = _noise(objective.gate.rescue, tokens, controls, per_response=objective.ratio.facts.per_response)
        low_T, high_T = _rescuing(ratio_T, low_T, high_T, noise_T)
    term = _term(objective, tokens, log_ratio_T.detach(), advantage_T, (low_T, high_T))
    is_weight = objective.gate.is_weight
    gradient_T = tokens.logp_T if is_weight else log_ratio_T
    if term.without_ratio_T is not None:
        gradient_T = torch.where(term.without_ratio_T, tokens.logp_T, log_ratio_T)
        saturated_T = saturated_T.masked_fill(term.without_ratio_T, 0)
    # The difference is exactly 0 with gradient 1: the loss has the value of the surrogate and the gradient of the
    # slope, whatever is on the far side of a bound, and nothing infinite is ever differentiated.
    surrogate_T = term.surrogate_T + term.slope_T * (gradient_T - gradient_T.detach())
    rule_T = term.rule_T if is_weight else term.rule_T | saturated_T
    return GateResult(loss_T=-advantage_T * surrogate_T, ratio_T=ratio_T, rule_T=rule_T)


def _noise(half_width: float, tokens: TokenBatch, controls: Controls, *, per_response: bool) -> Tensor:
    """[T], uniform from 1 - half_width to 1 + half_width; one for all tokens of a response where they share a ratio."""
    uniform_T = token_uniforms(
        seed=controls.seed,
        step=controls.step,
        sample_id_T=tokens.sample_id_T,
        position_T=torch.zeros_like(tokens.position_T) if per_response else tokens.position_T,
        stream=_NOISE_STREAM,
    )
    return (1.0 + half_width * (2.0 * uniform_T - 1.0)).to(tokens.logp_T.dtype)


def _rescuing(ratio_T: Tensor, low_T: Tensor, high_T: Tensor, noise_T: Tensor) -> tuple[Tensor, Tensor]:
    """NSR's bounds (arXiv 2605.22703, a reconstruction): a ratio that noise takes back inside is inside."""
    moved_T = ratio_T * noise_T
    return (
        torch.where(moved_T >= low_T, torch.minimum(low_T, ratio_T), low_T),
        torch.where(moved_T <= high_T, torch.maximum(high_T, ratio_T), high_T),
    )


def _term(
    objective: ObjectiveConfig,
    tokens: TokenBatch,
    log_ratio_T: Tensor,
    advantage_T: Tensor,
    bounds: tuple[Tensor, Tensor],
) -> _Term:
    ratio_T = log_ratio_T.exp()
    match objective.gate:
        case PpoGate() as gate:
            return _ppo(gate, ratio_T, advantage_T, *bounds)
        case CeGppoGate() as gate:
            return _ce_gppo(gate, log_ratio_T, advantage_T, *bounds)
        case CispoGate() as gate:
            return _cispo(gate, tokens, ratio_T, advantage_T)
        case SapoGate() as gate:
            return _sapo(gate, ratio_T, advantage_T)
        case DppoGate() as gate:
            return _dppo(gate, tokens, ratio_T, advantage_T, anchor_logp(objective.ratio.anchor, tokens))
        case AspoGate() as gate:
            return _aspo(gate, log_ratio_T, advantage_T, *bounds)
        case UpGate() as gate:
            return _up(gate, ratio_T, advantage_T, bounds[0])
    assert_never(objective.gate)


def _ppo(gate: PpoGate, ratio_T: Tensor, advantage_T: Tensor, low_T: Tensor, high_T: Tensor) -> _Term:
    """-min(r A, clip(r, lo, hi) A), and at most -dual A where A < 0 (arXiv 1912.09729), or -hi A.

    A factors out: A min(r, hi) for A > 0, A min(max(r, lo), dual) for A < 0.
    """
    rule_T = clipped_sides(ratio_T, advantage_T, low_T, high_T)
    dual_T = dual_bounds(gate, high_T)
    rule_T = rule_T | _flag((advantage_T < 0) & (ratio_T > dual_T), Rule.DUAL)
    negative_T = torch.minimum(torch.maximum(ratio_T, low_T), dual_T)
    bounded_T = torch.where(advantage_T > 0, torch.minimum(ratio_T, high_T), negative_T)
    return _Term(surrogate_T=bounded_T, slope_T=ratio_T * (rule_T == 0), rule_T=rule_T)


def dual_bounds(gate: Gate, high_T: Tensor) -> Tensor:
    """The bound of the dual clip of every token, [T]; inf where there is none."""
    at_high = isinstance(gate, PpoGate) and gate.dual_at_high
    return high_T.clamp(max=gate.dual_bound) if at_high else torch.full_like(high_T, gate.dual_bound)


def _ce_gppo(gate: CeGppoGate, log_ratio_T: Tensor, advantage_T: Tensor, low_T: Tensor, high_T: Tensor) -> _Term:
    """CE-GPPO (arXiv 2509.20712): beyond a bound the surrogate goes on linearly in log r, with the scaled bound as its
    slope, so it is continuous (the authors' code has another value there and the same gradient)."""
    ratio_T = log_ratio_T.exp()
    rule_T = clipped_sides(ratio_T, advantage_T, low_T, high_T)
    is_dual_T = (advantage_T < 0) & (ratio_T > gate.dual)
    bound_T = torch.where(advantage_T > 0, high_T, low_T)
    slope_T = torch.where(advantage_T > 0, gate.high_scale * high_T, gate.low_scale * low_T)
    beyond_T = bound_T + slope_T * (log_ratio_T - bound_T.log())
    inside_T = torch.where(is_dual_T, gate.dual, ratio_T)
    return _Term(
        surrogate_T=torch.where(rule_T != 0, beyond_T, inside_T),
        slope_T=torch.where(rule_T != 0, slope_T, ratio_T * ~is_dual_T),
        rule_T=rule_T | _flag(is_dual_T, Rule.DUAL),
    )


def _cispo(gate: CispoGate, tokens: TokenBatch, ratio_T: Tensor, advantage_T: Tensor) -> _Term:
    """-sg[clip(r, floor, cap)] A logp (MiniMax-M1, arXiv 2506.13585)."""
    weight_T = ratio_T.clamp(gate.floor, gate.cap)
    is_limited_T = (advantage_T != 0) & ((ratio_T < gate.floor) | (ratio_T > gate.cap))
    return _Term(surrogate_T=weight_T * tokens.logp_T.detach(), slope_T=weight_T, rule_T=_flag(is_limited_T, Rule.CAP))


def _sapo(gate: SapoGate, ratio_T: Tensor, advantage_T: Tensor) -> _Term:
    """-A (4 / tau) sigmoid(tau (r - 1)) (SAPO, arXiv 2511.20347)."""
    positive_T = torch.full_like(ratio_T, gate.positive_temperature)
    tau_T = torch.where(advantage_T > 0, positive_T, gate.negative_temperature)
    distance_T = tau_T * (ratio_T - 1.0)
    sigmoid_T = distance_T.sigmoid()
    # sigmoid(-x) is 1 - sigmoid(x) without its cancellation.
    slope_T = 4.0 * sigmoid_T * (-distance_T).sigmoid() * ratio_T
    return _Term(surrogate_T=4.0 / tau_T * sigmoid_T, slope_T=slope_T, rule_T=_no_rule(ratio_T))


def _dppo(gate: DppoGate, tokens: TokenBatch, ratio_T: Tensor, advantage_T: Tensor, anchor_T: Tensor) -> _Term:
    """-A sg[min(r, cap)] logp, 0 where the divergence is too large and the update would enlarge it
    (DPPO, arXiv 2602.04879)."""
    logp_T = tokens.logp_T.detach()
    moved_T = logp_T.exp() - anchor_T.exp()
    divergence_T = moved_T.abs() if gate.divergence == "tv" else _bernoulli_kl(anchor_T, logp_T)
    rises_T = (advantage_T > 0) & (moved_T > 0) & (divergence_T > gate.high)
    falls_T = (advantage_T < 0) & (moved_T < 0) & (divergence_T > gate.low)
    is_dropped_T = rises_T | falls_T
    weight_T = ratio_T.clamp(max=gate.cap) * ~is_dropped_T
    is_limited_T = (advantage_T != 0) & (ratio_T > gate.cap) & ~is_dropped_T
    rule_T = _flag(is_dropped_T, Rule.DPPO) | _flag(is_limited_T, Rule.CAP)
    return _Term(surrogate_T=weight_T * logp_T, slope_T=weight_T, rule_T=rule_T)


def _bernoulli_kl(anchor_T: Tensor, logp_T: Tensor) -> Tensor:
    """KL(q || p) of drawing the token or not: q log(q/p) + (1-q) log((1-q)/(1-p))."""
    complement_q_T = (-torch.expm1(anchor_T)).clamp(min=_SMALLEST_COMPLEMENT)
    complement_p_T = (-torch.expm1(logp_T)).clamp(min=_SMALLEST_COMPLEMENT)
    drawn_T = anchor_T.exp() * (anchor_T - logp_T)
    return drawn_T + complement_q_T * (complement_q_T.log() - complement_p_T.log())


def _aspo(gate: AspoGate, log_ratio_T: Tensor, advantage_T: Tensor, low_T: Tensor, high_T: Tensor) -> _Term:
    """ASPO (arXiv 2510.06062): the weight is 1/r where A > 0 and r where A < 0.

    The loss is the continuous function with that gradient: A / r for A > 0, -A r for A < 0, linear in log r beyond the
    cap, constant beyond the bound (whose own weight is below the cap, as lo <= 1 <= hi).
    """
    is_positive_T = advantage_T > 0
    ratio_T = log_ratio_T.exp()
    sides_T = clipped_sides(ratio_T, advantage_T, low_T, high_T)
    # With u = -log r for A > 0 and log r for A < 0 the surrogate is ∓f(u), f = exp(u) up to log cap, then linear.
    sign_T = torch.where(is_positive_T, -1.0, 1.0).to(ratio_T.dtype)
    bound_T = torch.where(is_positive_T, high_T, low_T)
    u_T = sign_T * torch.where(sides_T != 0, bound_T.log(), log_ratio_T)
    weight_T = u_T.exp()
    over_T = u_T - math.log(gate.cap)
    is_limited_T = (weight_T > gate.cap) & (advantage_T != 0)
    value_T = torch.where(is_limited_T, gate.cap * (1.0 + over_T), weight_T)
    slope_T = weight_T.clamp(max=gate.cap) * (sides_T == 0)
    return _Term(surrogate_T=sign_T * value_T, slope_T=slope_T, rule_T=sides_T | _flag(is_limited_T, Rule.CAP))


def _up(gate: UpGate, ratio_T: Tensor, advantage_T: Tensor, low_T: Tensor) -> _Term:
    """UP-GRPO (arXiv 2607.06987): -A p / sg[p] where A > 0, whose value is -A and whose g is A; elsewhere PPO."""
    is_positive_T = advantage_T > 0
    other = _ppo(PpoGate(dual=gate.dual), ratio_T, advantage_T, low_T, torch.full_like(low_T, math.inf))
    return _Term(
        surrogate_T=other.surrogate_T.masked_fill(is_positive_T, 1.0),
        slope_T=other.slope_T.masked_fill(is_positive_T, 1.0),
        rule_T=other.rule_T,
        without_ratio_T=is_positive_T,
    )


def _flag(mask_T: Tensor, rule: Rule) -> Tensor:
    return mask_T.to(torch.int32) * int(rule)


def _no_rule(like_T: Tensor) -> Tensor:
    return torch.zeros_like(like_T, dtype=torch.int32)
