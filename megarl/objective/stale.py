"""SAT's bounds (arXiv 2607.18722): tighter on the outward side of the tokens whose ratio has moved furthest.

T = response tokens.
"""

import math

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.config.trust import RatioConfig, StaleClip
from megarl.objective.contexts import RESOLUTION
from megarl.objective.order_statistics import kth_smallest
from megarl.objective.ratio import log_ratio
from megarl.objective.share import Share, share_of
from megarl.objective.tokens import TokenBatch


def staleness_quantile(objective: ObjectiveConfig, config: StaleClip, share: Share) -> float:
    """q: the ceil(quantile n)-th smallest |log r| of the mini-batch's n response tokens, at the configured level and
    anchor; the same on every rank. The authors take it over a micro-batch.

    0 where it is at most RESOLUTION: that is what rounding makes of ratios that have not moved, and relative to it
    every token that has moved would be infinitely stale under one layout and not at all under another.
    """
    staleness_T = log_ratio(objective.ratio, share.tokens).to(torch.float64).abs()
    rank = math.ceil(share_of(config.quantile, share.num_tokens)) - 1
    quantile = float(kth_smallest(staleness_T, [rank], share.reduce).item())
    return quantile if quantile > RESOLUTION else 0.0


def stale_bounds(
    config: StaleClip, ratio: RatioConfig, tokens: TokenBatch, stale_above: float
) -> tuple[Tensor, Tensor]:
    """(lo, hi), [T]: 1 - low and 1 + high, the one on the ratio's side nearer to 1 by the share c of its token.

    c = 1 / (1 + ((|log r| - q) / q)^power) above q, 1 up to it and everywhere where q is 0, as in a batch's first
    update with anchor "old". c has no jump at q, so that rounding does not decide.
    """
    log_ratio_T = log_ratio(ratio, tokens).detach()
    share_T = torch.ones_like(log_ratio_T)
    if stale_above > 0:
        excess_T = (log_ratio_T.abs() / stale_above - 1.0).clamp(min=0.0)
        share_T = 1.0 / (1.0 + excess_T.pow(config.power))
    low_T = 1.0 - config.low * torch.where(log_ratio_T < 0, share_T, 1.0)
    return low_T, 1.0 + config.high * torch.where(log_ratio_T > 0, share_T, 1.0)
