"""The matched control of a clip: as many tokens dropped, by a coin that does not look at the ratio.

What clipping does to the entropy is that it drops the tokens whose ratio has moved; that it drops tokens at all also
makes the steps smaller and noisier, and any finite step loses entropy. A run with the coin differs from its clip in
the first alone, so the difference of the two is the clip's doing; but the counts are of the run's own ratios, which
move as its weights do: look at matched/ beside the clip's clip_ratio/ before comparing.

Clip-low drops tokens with A < 0, clip-high such with A > 0. The coin drops on each side exactly as many of the side's
tokens, each with the same chance. Given the sign of A and the two counts, which token is dropped is then independent
of the tokens that were drawn, so where the reward is random the expected update is c' times the expected grad log p
under the current policy, which is 0: no bias, as without a clip. But for one thing: a count contains the token itself.
On a side of n tokens the coin keeps 1 / n of the clip's own bias, on a side of one token it is the clip; tokens of a
response, whose ratios move together, count as few. (The control of the small softmax in `theory` draws among the
tokens beyond the bounds instead, with a count that fits in the mean.) T = response tokens.
"""

import torch
from torch import Tensor

from megarl.config.objective import ObjectiveConfig
from megarl.objective.bounds import clipped_sides, token_bounds
from megarl.objective.order_statistics import smallest_k_mask
from megarl.objective.ratio import log_ratio
from megarl.objective.share import RuleResult, Share
from megarl.objective.tokens import Choices
from megarl.rules import Rule


def matched_control(objective: ObjectiveConfig, share: Share, bounds: Choices) -> RuleResult:
    """Drops on each side as many tokens as the bounds of `objective.clip` would under the current weights.

    `bounds` carries bounds that were searched. The coin is the token's draw of the step (`Share.lots`), so a run's
    choices are the same under every layout; a token is on one side only, so one draw serves both. Collectives: one,
    and for each side those of an exact choice, where anything is to be dropped.
    """
    beyond_T = sides_beyond(objective, share, bounds)
    sides = ((Rule.CLIP_LOW, share.advantage_T < 0), (Rule.CLIP_HIGH, share.advantage_T > 0))
    counts = share.reduce.sum(torch.stack([(beyond_T == int(rule)).sum() for rule, _ in sides])).tolist()
    drop_T = torch.zeros_like(beyond_T, dtype=torch.bool)
    for (_, side_T), k in zip(sides, counts, strict=True):
        drop_T = drop_T | smallest_k_mask(share.lots(), eligible_T=side_T, k=k, reduce=share.reduce)
    return share.dropped(drop_T, Rule.MATCHED)


def sides_beyond(objective: ObjectiveConfig, share: Share, bounds: Choices) -> Tensor:
    """int32 [T]: `clipped_sides` under the current weights by the bounds of `objective.clip`."""
    tokens = share.tokens
    low_T, high_T = token_bounds(objective.clip, tokens, share.controls, bounds, ratio=objective.ratio)
    ratio_T = log_ratio(objective.ratio, tokens).exp()
    return clipped_sides(ratio_T, share.advantage_T.to(ratio_T.dtype), low_T, high_T)
