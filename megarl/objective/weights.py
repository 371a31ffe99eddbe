"""Token weights that depend on the current policy but on no statistics of the mini-batch.

They are computed in each micro-batch's own pass, detached, and multiply with those of `choices`. A response is never
split over micro-batches, so its mean is whole. T = response tokens of B responses.
"""

import torch
from torch import Tensor

from megarl.config.credit import NegativeScale
from megarl.config.facts import NoFormulaError
from megarl.config.weight import EntropyRatioClip, OffPolicySequenceMask, PositiveScale, WeightsConfig
from megarl.objective.contexts import RESOLUTION
from megarl.objective.share import flags
from megarl.objective.tokens import Controls, TokenBatch
from megarl.rules import Rule

_ENTROPY_OFFSET = 1e-8
"""Added to both entropies of ERC's ratio, as its authors do."""


def token_weights(
    config: WeightsConfig, tokens: TokenBatch, controls: Controls, advantage_T: Tensor
) -> tuple[Tensor, Tensor]:
    """The product of OPSM, ERC and the scales by sign where configured, [T], and int32 `Rule` flags, [T].

    `advantage_T` is the shaped one. The scales are those of `controls`, where a controller may have moved them to, and
    have no flag. NoFormulaError for a weight that is on and known neither here nor to `choices`.
    """
    tokens, advantage_T = tokens.detach(), advantage_T.detach()
    weight_T = torch.ones_like(tokens.logp_T)
    rule_T = torch.zeros_like(weight_T, dtype=torch.int32)
    for weight in config.on.values():
        match weight:
            case OffPolicySequenceMask():
                drop_T = off_policy_sequences(weight, tokens, advantage_T)
                weight_T, rule_T = _without(drop_T, weight_T), rule_T | flags(drop_T, Rule.OPSM)
            case EntropyRatioClip():
                drop_T = entropy_ratio_outside(weight, tokens)
                weight_T, rule_T = _without(drop_T, weight_T), rule_T | flags(drop_T, Rule.ERC)
            case PositiveScale():
                weight_T = torch.where(advantage_T > 0, weight_T * controls.positive_scale, weight_T)
            case NegativeScale():
                weight_T = torch.where(advantage_T < 0, weight_T * controls.negative_scale, weight_T)
            case _ if not weight.needs_survey and weight.mismatch == "ignores":
                raise NoFormulaError(weight, "the weight of tokens")
    return weight_T, rule_T


def _without(drop_T: Tensor, weight_T: Tensor) -> Tensor:
    return weight_T.masked_fill(drop_T, 0.0)


def off_policy_sequences(config: OffPolicySequenceMask, tokens: TokenBatch, advantage_T: Tensor) -> Tensor:
    """bool [T], the tokens that OPSM drops (DeepSeek-V3.2): A < 0, and the response's mean of old_logp - logp, an
    estimate of KL(old || current) per token, is above the threshold."""
    divergence_T = tokens.sequence_mean(tokens.old_logp_T.double() - tokens.logp_T.double())
    return (advantage_T < 0) & (divergence_T > config.threshold)


def entropy_ratio_outside(config: EntropyRatioClip, tokens: TokenBatch) -> Tensor:
    """bool [T], the tokens that ERC drops (arXiv 2512.05591): H / H_old is not strictly between `low` and `high`, and
    the two differ by more than RESOLUTION: of a token that the policy is certain of the ratio is one of roundings.

    H_old is the trainer's entropy before the batch's first update, so in a step's first update the ratio is 1.
    """
    entropy_T, old_entropy_T = tokens.entropy_T.double(), tokens.old_entropy_T.double()
    ratio_T = (entropy_T + _ENTROPY_OFFSET) / (old_entropy_T + _ENTROPY_OFFSET)
    equal_T = (entropy_T - old_entropy_T).abs() <= RESOLUTION
    return ~(equal_T | ((ratio_T > config.low) & (ratio_T < config.high)))
