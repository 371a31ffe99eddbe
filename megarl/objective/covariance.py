"""Clip-Cov and KL-Cov: tokens picked by the covariance of log-prob and advantage (arXiv 2505.22617).

Cov = (A - mean A) (logp - mean logp), with means over all response tokens of the mini-batch (the authors take them over
a micro-batch). The authors' entropy law says that the policy loses entropy where it is high.
T = response tokens of this rank's share.
"""

import torch
from torch import Tensor

from megarl.config.auxiliary import KlCov
from megarl.config.objective import ObjectiveConfig
from megarl.config.weight import ClipCov
from megarl.objective.bounds import clipped_sides, token_bounds
from megarl.objective.contexts import at_resolution
from megarl.objective.exact_sums import exact_sums
from megarl.objective.order_statistics import smallest_k_mask
from megarl.objective.ratio import log_ratio
from megarl.objective.share import RuleResult, Share, at_least_one
from megarl.objective.tokens import Choices
from megarl.rules import Rule


def token_covariance(share: Share) -> Tensor:
    """Cov, float64 [T]; two collectives. The mini-batch's mean of it is the covariance of A and logp.

    log p counts as a multiple of RESOLUTION: tokens that the policy is certain of (p = 1 but for rounding) are equal.
    """
    logp_T = at_resolution(share.tokens.logp_T.to(torch.float64))
    mean_advantage, mean_logp = (
        total / share.num_tokens for total in exact_sums([share.advantage_T, logp_T], share.reduce)
    )
    return (share.advantage_T - mean_advantage) * (logp_T - mean_logp)


def clip_cov(
    config: ClipCov, share: Share, *, objective: ObjectiveConfig, covariance_T: Tensor, bounds: Choices
) -> RuleResult:
    """Drops max(1, floor(fraction * tokens)) random ones of the eligible tokens (all where there are fewer).

    Eligible: low < Cov < high, and not clipped under the current weights by the bounds of `objective.clip` (`bounds`
    carries BAPO's). The draw belongs to the tokens (`Share.lots`).
    """
    tokens, controls = share.tokens, share.controls
    low_T, high_T = token_bounds(objective.clip, tokens, controls, bounds, ratio=objective.ratio)
    ratio_T = log_ratio(objective.ratio, tokens).exp()
    sides_T = clipped_sides(ratio_T, share.advantage_T.to(ratio_T.dtype), low_T, high_T)
    eligible_T = (covariance_T > config.low) & (covariance_T < config.high) & (sides_T == 0)
    k = at_least_one(config.fraction, share.num_tokens)
    drop_T = smallest_k_mask(share.lots(), eligible_T=eligible_T, k=k, reduce=share.reduce)
    return share.dropped(drop_T, Rule.CLIP_COV)


def kl_cov_mask(config: KlCov, share: Share, *, covariance_T: Tensor) -> Tensor:
    """bool [T]: exactly the max(1, floor(fraction * tokens)) tokens with the highest Cov of the mini-batch; of ties as
    many as there is room for, by the draw of the step (`Share.lots`)."""
    k = at_least_one(config.fraction, share.num_tokens)
    everything_T = torch.ones_like(covariance_T, dtype=torch.bool)
    return smallest_k_mask((-covariance_T, *share.lots()), eligible_T=everything_T, k=k, reduce=share.reduce)
