"""The ratio r between the current policy and its anchor, as a log. T = response tokens.

The log ratio is clamped to ±LOG_RATIO_LIMIT after the level is applied, so exp cannot overflow in float32; beyond it
r has no gradient. Every token of a response has the same value at level "sequence" and "sequence_token".
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from megarl.config.trust import RatioConfig
from megarl.objective.tokens import TokenBatch

LOG_RATIO_LIMIT = 20.0
"""exp(20) = 4.9e8. The limit of verl's token ratio; its sequence ratio (GSPO) stops at 10 from above, here one limit
serves every level, symmetric."""


def anchor_logp(anchor: Literal["old", "behavior"], tokens: TokenBatch) -> Tensor:
    """The log-probs the ratio is anchored at, [T], detached.

    Raises:
        ValueError: anchor "behavior" and the tokens carry no log-probs of the engine.
    """
    match anchor:
        case "old":
            return tokens.old_logp_T.detach()
        case "behavior":
            if tokens.behavior_logp_T is None:
                raise ValueError(
                    'objective.ratio.anchor is "behavior" but these tokens have no behavior_logp (the engine\'s '
                    'log-probs when it sampled): nobody sampled them; set objective.ratio.anchor = "old"'
                )
            return tokens.behavior_logp_T.detach()
    assert_never(anchor)


def log_ratio(config: RatioConfig, tokens: TokenBatch) -> Tensor:
    """log r per token, [T], differentiable in `tokens.logp_T` inside ±LOG_RATIO_LIMIT, which it is clamped to.

    token: logp - anchor. sequence: the mean of that over the response, with its gradient (GSPO, arXiv 2507.18071).
    sequence_token: the value of that mean, the gradient of the own logp only (GSPO-token). geometric: as token; the
    gate bounds token ratios before it averages them (GMPO, arXiv 2507.20673). prefix: the value of the sum up to and
    with the token, each bounded to ±LOG_RATIO_LIMIT as its authors do, the gradient of the own logp only (CTPO,
    arXiv 2605.07331).

    Raises:
        ValueError: anchor "behavior" without behavior log-probs.
    """
    return _unclamped(config, tokens).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def saturated(config: RatioConfig, tokens: TokenBatch) -> Tensor:
    """bool [T]: where the clamp acts, so that r has no gradient."""
    with torch.no_grad():
        return _unclamped(config, tokens).abs() > LOG_RATIO_LIMIT


def _unclamped(config: RatioConfig, tokens: TokenBatch) -> Tensor:
    log_ratio_T = tokens.logp_T - anchor_logp(config.anchor, tokens)
    match config.level:
        case "token" | "geometric":
            return log_ratio_T
        case "sequence":
            return tokens.sequence_mean(log_ratio_T)
        case "sequence_token":
            # logp - sg[logp] is exactly 0 with gradient 1.
            own_T = tokens.logp_T - tokens.logp_T.detach()
            return tokens.sequence_mean(log_ratio_T.detach()) + own_T
        case "prefix":
            bounded_T = log_ratio_T.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            return tokens.prefix_sum(bounded_T) + (tokens.logp_T - tokens.logp_T.detach())
    assert_never(config.level)
