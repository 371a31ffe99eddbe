"""Weights against the mismatch between the trainer and vLLM: rho = exp(old_logp - behavior_logp).

TIS truncates, MIS and IcePop mask, sequence rejection drops whole responses. They compare rho in float64, where even
the product over a long response is only clamped at exp(±700); a weight is at most exp(±LOG_RATIO_LIMIT), as in verl.
T = response tokens of this rank's share.
"""

import math
from typing import Literal, assert_never

import torch
from torch import Tensor

from megarl.config.weight import MaskedImportance, SequenceRejection, TruncatedImportance
from megarl.objective.exact_sums import exact_sums
from megarl.objective.ratio import LOG_RATIO_LIMIT
from megarl.objective.share import RuleResult, Share, flags
from megarl.objective.tokens import TokenBatch
from megarl.rules import Rule

_EXP_LIMIT = 700.0
"""exp(±700) is finite and not 0 in float64."""


def truncated_importance(config: TruncatedImportance, share: Share) -> RuleResult:
    """TIS: rho limited to [floor, cap], of the token or of the response's product. Flags limited tokens.

    `normalise` divides by the mean weight over all response tokens of the mini-batch (verl's batch normalisation;
    two collectives), after the limits.
    """
    rho_T = _ratio(share.tokens, config.level)
    weight_T = _finite_weight(rho_T.clamp(config.floor, config.cap))
    if config.normalise:
        (total,) = exact_sums([weight_T], share.reduce)
        weight_T = weight_T / (total / share.num_tokens)
    limited_T = (rho_T < config.floor) | (rho_T > config.cap)
    return weight_T.to(share.tokens.logp_T.dtype), flags(limited_T, Rule.TIS)


def masked_importance(config: MaskedImportance, share: Share) -> RuleResult:
    """MIS: rho inside [low, high], 0 outside; IcePop is level "token" with 0.5 and 5. Flags dropped tokens.

    Levels "sequence" (product) and "geometric" (geometric mean) weigh and mask with one rho per response.
    """
    rho_T = _ratio(share.tokens, config.level)
    kept_T = (rho_T >= config.low) & (rho_T <= config.high)
    weight_T = torch.where(kept_T, _finite_weight(rho_T), 0.0)
    return weight_T.to(share.tokens.logp_T.dtype), flags(~kept_T, Rule.IMPORTANCE_MASK)


def sequence_rejection(config: SequenceRejection, share: Share) -> RuleResult:
    """Drops the responses whose k1, k2 or k3 statistic of log rho lies outside its bounds, and flags their tokens."""
    log_rho_T = _log_ratio(share.tokens)
    mean = share.tokens.sequence_mean
    match config.statistic:
        case "k1":
            geometric_T = _exp(mean(log_rho_T))
            kept_T = (geometric_T >= config.low) & (geometric_T <= config.high)
        case "k2":
            kept_T = mean(0.5 * log_rho_T.square()) <= config.high
        case "k3":
            limited_T = log_rho_T.clamp(-_EXP_LIMIT, _EXP_LIMIT)
            kept_T = mean(torch.expm1(limited_T) - limited_T) <= config.high
        case _:
            assert_never(config.statistic)
    return share.dropped(~kept_T, Rule.SEQUENCE_REJECTION)


def _ratio(tokens: TokenBatch, level: Literal["token", "sequence", "geometric"]) -> Tensor:
    """rho, float64 [T]: the token's, or its response's product or geometric mean."""
    log_rho_T = _log_ratio(tokens)
    match level:
        case "token":
            return _exp(log_rho_T)
        case "sequence":
            return _exp(tokens.sequence_sum(log_rho_T)[tokens.sequence_T])
        case "geometric":
            return _exp(tokens.sequence_mean(log_rho_T))
    assert_never(level)


def _log_ratio(tokens: TokenBatch) -> Tensor:
    """log rho, float64 [T], clamped per token so that sums of opposite infinities cannot become NaN.

    Raises:
        ValueError: the tokens have no `behavior_logp_T`.
    """
    if tokens.behavior_logp_T is None:
        raise ValueError("the trainer-vLLM mismatch needs behavior_logp_T, vLLM's log-probs when it sampled; pass it")
    return (tokens.old_logp_T.double() - tokens.behavior_logp_T.double()).clamp(-_EXP_LIMIT, _EXP_LIMIT)


def _exp(log_T: Tensor) -> Tensor:
    return log_T.clamp(-_EXP_LIMIT, _EXP_LIMIT).exp()


def _finite_weight(rho_T: Tensor) -> Tensor:
    """At most exp(LOG_RATIO_LIMIT), so that an unlimited cap cannot overflow the loss."""
    return rho_T.clamp(max=math.exp(LOG_RATIO_LIMIT))
