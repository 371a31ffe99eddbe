"""Rules that weigh tokens by what they do to the entropy: 80/20, STEER, Clip_B, Clip_V.

Every statistic (quantile, minimum, maximum, mean, standard deviation, k-th largest) is over all response tokens of the
mini-batch. Standard deviations are of the population (divisor n), as in the authors' code of Clip_B and Clip_V.
p, H, Q = p (log p + H) and N = E[Q] are the current policy's. T = response tokens of this rank's share.

Tokens of equal contexts are equal here (`contexts`), so what is said of ties is said of them. Rounding still moves a
token of a context of its own that lies within rounding (e, 1e-6 nats in float32) of an edge: for 80/20 it is 2 T f e of
T tokens in the mean, f the density of the entropies at the edge. Of 100,000 tokens with f = 1/3 that is one token in
fifteen mini-batches. In bfloat16 layouts differ by 1e-2, and so 0.7 % of such tokens change sides.
"""

import math
from typing import assert_never

import torch
from torch import Tensor

from megarl.config.weight import ClipB, ClipV, HighEntropyMask, Steer
from megarl.objective.contexts import RESOLUTION, at_resolution
from megarl.objective.exact_sums import exact_sums
from megarl.objective.order_statistics import kth_smallest, smallest_k_mask
from megarl.objective.share import RuleResult, Share, at_least_one, share_of
from megarl.rules import Rule

_PROBABILITY_LIMIT = 1e-8
"""STEER keeps p in [1e-8, 1 - 1e-8]."""
_STEER_SMALLEST_MAXIMUM = 0.02
"""STEER's exponential weights decay as if the largest metric were at least this."""


def high_entropy(config: HighEntropyMask, share: Share) -> RuleResult:
    """80/20 (arXiv 2506.01939): keeps H >= tau, tau the k-th largest entropy, k = ceil(fraction * tokens), with
    entropies as multiples of RESOLUTION.

    So at least k tokens are kept, and all that tie at tau: of the first tokens of a group all or none, and where fewer
    than k tokens have an entropy at all, every token (rule/low_entropy_frac shows what share was dropped). A quantile
    that interpolates, as the authors' does, keeps the same tokens or one fewer; k never depends on how the quantile
    rounds.
    """
    kept = math.ceil(share_of(config.fraction, share.num_tokens))
    entropy_T = at_resolution(share.tokens.entropy_T)
    tau = kth_smallest(entropy_T, [share.num_tokens - kept], share.reduce)
    return share.dropped(entropy_T < tau, Rule.LOW_ENTROPY)


def steer(config: Steer, share: Share) -> RuleResult:
    """STEER (arXiv 2510.10150): smaller weights where m = |(A / pi_old) x (1 - x) (ln x + H)| is larger, x = p.

    linear: from `high` at the smallest m to `low` at the largest; closer to the middle where they differ by less than
    what RESOLUTION makes of m, and the middle where all are equal. exponential: exp(-k m), at least `low`, with k such
    that the largest m gets `low` (or more, where it is below 0.02). A metric that is not finite counts as 0. One
    collective.
    """
    metric_T, slope_T = entropy_change_metric(share)
    edges = torch.stack((metric_T, -metric_T, slope_T))
    outside = edges.new_full((3, 1), -math.inf)
    largest, minus_smallest, slope = share.reduce.max(torch.cat((edges, outside), dim=1).amax(dim=1)).tolist()
    middle, span = 0.5 * (largest - minus_smallest), max(largest + minus_smallest, RESOLUTION * slope)
    match config.shape:
        case "linear":
            place_T = (metric_T - middle) / span if span else torch.zeros_like(metric_T)
            weight_T = 0.5 * (config.low + config.high) - place_T * (config.high - config.low)
        case "exponential":
            rate = -math.log(config.low) / max(largest, _STEER_SMALLEST_MAXIMUM)
            weight_T = (-rate * metric_T).exp().clamp(config.low, 1.0)
        case _:
            assert_never(config.shape)
    return weight_T.to(share.tokens.logp_T.dtype), torch.zeros_like(metric_T, dtype=torch.int32)


def entropy_change_metric(share: Share) -> tuple[Tensor, Tensor]:
    """m >= 0 of `steer`, float64 [T], a heuristic size of the entropy change (exactly: r A (Q - N)); and what a nat of
    ln x + H makes of it, [T]."""
    tokens = share.tokens
    logp_T = tokens.logp_T.to(torch.float64)
    x_T = logp_T.exp().clamp(_PROBABILITY_LIMIT, 1.0 - _PROBABILITY_LIMIT)
    step_T = share.advantage_T / tokens.old_logp_T.to(torch.float64).exp()
    slope_T = (step_T * x_T * (1.0 - x_T)).abs()
    change_T = slope_T * (x_T.log() + tokens.entropy_T.to(torch.float64)).abs()
    return tuple(value_T.nan_to_num(nan=0.0, posinf=0.0) for value_T in (change_T, slope_T))  # type: ignore[return-value]


def clip_b(config: ClipB, share: Share) -> RuleResult:
    """Clip_B (arXiv 2602.03392): drops A < 0 tokens with S - mean(S) < -mu std(S), S = Q. Four collectives.

    Only below -RESOLUTION, and none where the deviation is smaller: then all tokens are alike but for rounding (the
    authors' code stops at 1e-12, which float32 never reaches).
    """
    s_T = share.tokens.q_T
    mean, std = _mean_and_std(s_T, share)
    if std < RESOLUTION:
        return share.dropped(torch.zeros_like(s_T, dtype=torch.bool), Rule.CLIP_B)
    return share.dropped((share.advantage_T < 0) & (s_T - mean < -max(config.mu * std, RESOLUTION)), Rule.CLIP_B)


def clip_v(config: ClipV, share: Share) -> RuleResult:
    """Clip_V (arXiv 2602.03392): drops A < 0 tokens with x > mu std(x), x = N - S, but at most
    max(1, floor(max_fraction * tokens)) of them: those with the largest x. x is compared as it is, not centred.

    Of ties as many as there is room for, by the draw of the step (`Share.lots`). Only above RESOLUTION, and none where
    the deviation is smaller, as in `clip_b`.
    """
    x_T = share.tokens.expected_q_T.to(torch.float64) - share.tokens.q_T
    _, std = _mean_and_std(x_T, share)
    if std < RESOLUTION:
        return share.dropped(torch.zeros_like(x_T, dtype=torch.bool), Rule.CLIP_V)
    beyond_T = (share.advantage_T < 0) & (x_T > max(config.mu * std, RESOLUTION))
    k = at_least_one(config.max_fraction, share.num_tokens)
    worst_T = smallest_k_mask((-x_T, *share.lots()), eligible_T=beyond_T, k=k, reduce=share.reduce)
    return share.dropped(worst_T, Rule.CLIP_V)


def _mean_and_std(values_T: Tensor, share: Share) -> tuple[float, float]:
    """Mean and population standard deviation over the mini-batch, around the mean, so that nothing cancels."""
    (total,) = exact_sums([values_T], share.reduce)
    mean = total / share.num_tokens
    (squares,) = exact_sums([(values_T - mean).square()], share.reduce)
    return mean, math.sqrt(squares / share.num_tokens)
