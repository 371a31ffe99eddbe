"""Token weights that share out credit by the sign of A and what a token does to the entropy: STARE, OPEFO.

Every statistic is over all response tokens of the mini-batch. T = response tokens of this rank's share.
"""

import math

import torch
from torch import Tensor

from megarl.config.credit import Stare
from megarl.config.trust import RatioConfig
from megarl.objective.contexts import RESOLUTION, at_resolution
from megarl.objective.exact_sums import exact_sums
from megarl.objective.order_statistics import count, smallest_k_mask
from megarl.objective.ratio import log_ratio
from megarl.objective.share import RuleResult, Share, share_of


def stare(config: Stare, share: Share) -> RuleResult:
    """STARE (arXiv 2606.19236): of the n tokens of a sign, the max(1, ceil(fraction n)) most surprising get the weight
    of their sign, all others 1. Everything 1 while the controller's gate is closed.

    The authors take the tokens of a micro-batch. Surprisal -log p counts as a multiple of RESOLUTION; of ties as many
    as there is room for, by the draw of the step (`Share.lots`).
    """
    weight_T = torch.ones_like(share.advantage_T)
    for eligible_T, factor in ((share.advantage_T > 0, config.positive), (share.advantage_T < 0, config.negative)):
        if share.controls.stare_acts and factor != 1.0:
            weight_T = weight_T.masked_fill(_most_surprising(eligible_T, config.fraction, share), factor)
    return weight_T.to(share.tokens.logp_T.dtype), torch.zeros_like(weight_T, dtype=torch.int32)


def _most_surprising(eligible_T: Tensor, fraction: float, share: Share) -> Tensor:
    """bool [T]: of the eligible tokens of the mini-batch the share with the smallest log p; none of none."""
    num_eligible = count(eligible_T, share.reduce)
    k = math.ceil(share_of(fraction, num_eligible))
    logp_T = at_resolution(share.tokens.logp_T.to(torch.float64))
    return smallest_k_mask((logp_T, *share.lots()), eligible_T=eligible_T, k=k, reduce=share.reduce)


def entropy_flow(share: Share, ratio: RatioConfig) -> RuleResult:
    """OPEFO (arXiv 2605.11491): 1 + lambda where a token raises the entropy, 1 - lambda where it lowers it, lambda =
    (D - U) / (D + U) with U and D the sizes of the two sums over the mini-batch. Two collectives.

    A token's change of the entropy is w r A (N - Q), w its aggregation weight: the first order of a step of tabular
    softmax logits, exactly (accounting's budget without clipping and other weights). The paper has such an expression
    of A, p, log p and H; which one is not known here. Weighted, the two sums cancel. Tokens with |N - Q| up to
    RESOLUTION, whose sign may be rounding, are in neither and have weight 1, as all have where nothing moves.
    """
    tokens = share.tokens
    gap_T = tokens.expected_q_T.to(torch.float64) - tokens.q_T
    gap_T = gap_T.masked_fill(gap_T.abs() <= RESOLUTION, 0.0)
    size_T = tokens.weight_T.to(torch.float64) * log_ratio(ratio, tokens).to(torch.float64).exp()
    change_T = size_T * share.advantage_T * gap_T
    up, down = exact_sums([change_T.clamp(min=0.0), (-change_T).clamp(min=0.0)], share.reduce)
    balance = (down - up) / (down + up) if down + up else 0.0
    weight_T = 1.0 + balance * change_T.sign()
    return weight_T.to(tokens.logp_T.dtype), torch.zeros_like(weight_T, dtype=torch.int32)
