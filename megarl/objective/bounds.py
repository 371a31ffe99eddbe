"""Bounds of the ratio per token: lo <= 1 <= hi, both ratios. T = response tokens, B = responses.

lo = 0 and hi = inf mean "off". Bounds carry no gradient, in any method: one that depends on the current policy would
add a term of its own to the gradient of a clipped token. Nothing here waits for the device.
"""

import math
from typing import assert_never

import torch
from torch import Tensor

from megarl.config.closed_loop import ClosedLoopClip, ClosedLoopFlexEcClip
from megarl.config.trust import (
    ArcherClip,
    BapoClip,
    Clip,
    ConstantClip,
    DcpoClip,
    FlexEcClip,
    GrowingClip,
    LogClip,
    NoClip,
    RatioConfig,
    StaleClip,
)
from megarl.objective.contexts import at_resolution
from megarl.objective.ratio import anchor_logp
from megarl.objective.schedules import Line, mix, mix_lines
from megarl.objective.stale import stale_bounds
from megarl.objective.tokens import Choices, Controls, TokenBatch
from megarl.rules import Rule

_TOKEN_RATIO = RatioConfig()


def token_bounds(
    clip: Clip,
    tokens: TokenBatch,
    controls: Controls,
    choices: Choices,
    *,
    ratio: RatioConfig = _TOKEN_RATIO,
) -> tuple[Tensor, Tensor]:
    """(lo, hi) of every token, [T] each, detached.

    `ratio` is what the bounds are for: DCPO and FlexEC read the probability q the token had under its anchor, SAT the
    ratio itself.

    Raises:
        ValueError: clip "bapo" without `choices.bapo_bounds`, "stale" without `choices.stale_above`, or a closed loop
            without `choices.loop`; a FlexEC line that goes below 0 or is NaN; anchor "behavior" without behavior
            log-probs.
    """
    like_T = tokens.logp_T.detach()
    match clip:
        case NoClip():
            return no_bounds(like_T)
        case ConstantClip():
            return _everywhere(1.0 - clip.low, 1.0 + clip.high, like_T)
        case LogClip():
            # exp of the tensor: math.exp raises where the result is too large, and that only means "off".
            low_T, high_T = _everywhere(-clip.low, clip.high, like_T)
            return low_T.exp(), high_T.exp()
        case FlexEcClip():
            return _flexec_bounds(anchor_logp(ratio.anchor, tokens).exp(), controls.upper, controls.lower)
        case DcpoClip():
            return _dcpo_bounds(clip, anchor_logp(ratio.anchor, tokens).exp())
        case BapoClip():
            if choices.bapo_bounds is None:
                raise ValueError(
                    'objective.clip.kind is "bapo" but the choices of this mini-batch hold no bapo_bounds; they come '
                    "from a search over the whole mini-batch, so call choose() on it first"
                )
            return _everywhere(*choices.bapo_bounds, like_T)
        case ArcherClip():
            uncertain_T = _above_own_quantile(tokens, clip.quantile)
            distance_T = torch.full_like(like_T, clip.low).masked_fill(uncertain_T, clip.high_entropy)
            return 1.0 - distance_T, 1.0 + distance_T
        case GrowingClip():
            return _growing_bounds(clip, tokens)
        case StaleClip():
            if choices.stale_above is None:
                raise ValueError(
                    'objective.clip.kind is "stale" but the choices of this mini-batch hold no stale_above; it is a '
                    "quantile of the whole mini-batch, so call choose() on it first"
                )
            return stale_bounds(clip, ratio, tokens, choices.stale_above)
        case ClosedLoopClip() | ClosedLoopFlexEcClip():
            return _loop_bounds(clip, choices, tokens, ratio)
    assert_never(clip)


def clipped_sides(ratio_T: Tensor, advantage_T: Tensor, low_T: Tensor, high_T: Tensor) -> Tensor:
    """int32 [T]: Rule.CLIP_LOW where A < 0 and r < lo, Rule.CLIP_HIGH where A > 0 and r > hi, else 0. A ratio equal to
    its bound is not clipped."""
    is_low_T = (advantage_T < 0) & (ratio_T < low_T)
    is_high_T = (advantage_T > 0) & (ratio_T > high_T)
    return is_low_T.to(torch.int32) * int(Rule.CLIP_LOW) + is_high_T.to(torch.int32) * int(Rule.CLIP_HIGH)


def no_bounds(like_T: Tensor) -> tuple[Tensor, Tensor]:
    """(0, inf) of every token, [T] each: both sides off."""
    return _everywhere(0.0, math.inf, like_T.detach())


def _everywhere(low: float, high: float, like_T: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(like_T, low), torch.full_like(like_T, high)


def _loop_bounds(
    clip: ClosedLoopClip | ClosedLoopFlexEcClip, choices: Choices, tokens: TokenBatch, ratio: RatioConfig
) -> tuple[Tensor, Tensor]:
    """At knob 0 the bounds that lower the entropy, at 1 those that raise it; every bound moves one way in between.

    FlexEC's two modes are no extremes at every p: its published lower line goes below `standard` from p = 0.77 on.
    """
    if choices.loop is None:
        raise ValueError(
            f'objective.clip.kind is "{clip.kind}" but the choices of this mini-batch hold no knob; it comes from a '
            "search over the whole mini-batch, so call choose() on it first"
        )
    knob = choices.loop.knob
    match clip:
        case ClosedLoopClip():
            low = mix(clip.low_loose, clip.low_tight, knob)
            high = mix(clip.high_tight, clip.high_loose, knob)
            return _everywhere(1.0 - low, 1.0 + high, tokens.logp_T.detach())
        case ClosedLoopFlexEcClip():
            standard = (0.0, clip.standard)
            upper = mix_lines(standard, (clip.upper_slope, clip.upper_start), knob)
            lower = mix_lines((clip.lower_slope, clip.lower_start), standard, knob)
            return _flexec_bounds(anchor_logp(ratio.anchor, tokens).exp(), upper, lower)
    assert_never(clip)


def _flexec_bounds(q_T: Tensor, upper: Line, lower: Line) -> tuple[Tensor, Tensor]:
    """FlexEC (arXiv 2602.09782): distances linear in the current probability p, in closed form of the anchor's q.

    With p = r q, r <= 1 + (a p + b) is r (1 - a q) <= 1 + b, and 1 - a q > 0 because a <= 0: hi = (1 + b) / (1 - a q).
    Likewise r >= 1 - (a p + b) is r (1 + a q) >= 1 - b: lo = (1 - b) / (1 + a q). The gate is the same as with the
    line in a detached p, and the bound does not move while the policy does.
    """
    upper_slope, upper_start = _checked_line("upper", upper)
    lower_slope, lower_start = _checked_line("lower", lower)
    high_T = (1.0 + upper_start) / (1.0 - upper_slope * q_T)
    # 1 + a q is 0 only for the line 1 - p at q = 1, where 1 - b = 0 too: any r is inside, lo = 0.
    low_T = (1.0 - lower_start) / (1.0 + lower_slope * q_T).clamp(min=torch.finfo(q_T.dtype).tiny)
    # A distance of 0 must not become less by rounding: a ratio of 1 is inside.
    return low_T.clamp(0.0, 1.0), high_T.clamp(min=1.0)


def _checked_line(name: str, line: tuple[float, float]) -> tuple[float, float]:
    """The (slope, start), if the distance falls with p and is at least 0 up to p = 1 (low: at most 1)."""
    slope, start = line
    rounding = 1e-9  # of a schedule that interpolates lines
    if not (slope <= 0 and slope + start >= -rounding and (name == "upper" or start <= 1 + rounding)):  # NaN fails too
        raise ValueError(
            f"FlexEC's {name} distance is {start:g} at p = 0 and {start + slope:g} at p = 1; it must fall (slope <= 0, "
            f"found {slope:g}), not go below 0{'' if name == 'upper' else ', and not start above 1'}; change "
            f"objective.clip.{name}_slope and {name}_start"
        )
    return slope, start


def _dcpo_bounds(clip: DcpoClip, q_T: Tensor) -> tuple[Tensor, Tensor]:
    """DCPO (arXiv 2509.02333): the roots of |r - 1| r q = epsilon, so rare tokens get more room."""
    q_T = q_T.clamp(min=torch.finfo(q_T.dtype).tiny)  # exp of a very small log-prob is 0
    low_T = 0.5 + 0.5 * (1.0 - 4.0 * clip.low / q_T).clamp(min=0).sqrt()
    high_T = (0.5 + 0.5 * (1.0 + 4.0 * clip.high / q_T).sqrt()).clamp(max=clip.cap)
    return low_T, high_T


def _growing_bounds(clip: GrowingClip, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """CTPO (arXiv 2605.07331): exp(-low t^power) and exp(high t^power), t the token's place in its response, from 1."""
    scale_T = (tokens.position_T + 1).to(torch.float64).pow(clip.power)
    return tuple((distance * scale_T).exp().to(tokens.logp_T.dtype) for distance in (-clip.low, clip.high))  # type: ignore[return-value]


def _above_own_quantile(tokens: TokenBatch, quantile: float) -> Tensor:
    """bool [T]: the old entropy is above the `quantile` of the response's own n, the ceil(quantile n)-th smallest, with
    entropies as multiples of RESOLUTION: tokens that the policy is certain of are equal."""
    entropy_T = at_resolution(tokens.old_entropy_T.detach())
    by_entropy_T = entropy_T.argsort(stable=True)
    order_T = by_entropy_T[tokens.sequence_T[by_entropy_T].argsort(stable=True)]
    length_B = tokens.lengths().to(torch.float64)
    start_B = length_B.cumsum(0) - length_B
    # 0.56 * 25 is a little more than 14 in floating point; the 14th is meant.
    rank_B = (quantile * length_B - 1e-9).ceil().clamp(min=1) - 1
    threshold_at_T = (start_B + rank_B).to(torch.int64)[tokens.sequence_T]
    return entropy_T > entropy_T[order_T[threshold_at_T]]
