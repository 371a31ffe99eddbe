"""Token weights that share out credit by the sign of A and what a token does to the entropy: STARE.

Every statistic is over all response tokens of the mini-batch. T = response tokens of this rank's share.
"""

import math

import torch
from torch import Tensor

from megarl.config.credit import Stare
from megarl.objective.contexts import at_resolution
from megarl.objective.order_statistics import count, smallest_k_mask
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
