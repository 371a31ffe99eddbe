"""Token shaping of the advantage: bonuses that depend on the token, after the advantage method. T = response tokens.

The shaped advantage carries no gradient, keeps the sign of the advantage, and is 0 where the advantage is 0.
"""

import torch
from torch import Tensor

from megarl.config.advantage import ShapingConfig
from megarl.objective.tokens import TokenBatch


def shaped_advantage(config: ShapingConfig, tokens: TokenBatch) -> Tensor:
    """The advantage per token, [T], detached: A + min(alpha H, |A| / kappa) with H the current policy's entropy in
    nats (arXiv 2506.14758), or A itself where `shaping.entropy` is absent.

    The bonus is never negative: it enlarges A > 0 and shrinks A < 0. kappa > 1 keeps the sign.
    """
    advantage_T = tokens.advantage_T.detach()
    if config.entropy is None:
        return advantage_T
    # An entropy of 0 may come out as -1e-8; without the clamp a token with A = 0 would get a negative advantage.
    entropy_T = tokens.entropy_T.detach().clamp(min=0)
    return advantage_T + torch.minimum(config.entropy.alpha * entropy_T, advantage_T.abs() / config.entropy.kappa)
