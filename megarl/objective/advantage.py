"""Advantages from the rewards of a batch. Pure Python in double precision: the same on every rank and in any order.

A group is the responses to one prompt. The result depends only on which rewards share a group, never on where in the
batch they stand (sums are exactly rounded). A group whose rewards are all equal, a group of one included, has
advantage exactly 0.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import assert_never

from megarl.config.objective import Advantage, DrGrpo, Grpo


def compute_advantages(config: Advantage, rewards: Sequence[float], group_ids: Sequence[int]) -> list[float]:
    """One advantage per response, in the order given.

    DrGrpo: A = R - mean (arXiv 2503.20783). Grpo: A = (R - mean) / (std + eps), std with Bessel's correction
    (arXiv 2402.03300; as verl and TRL). Mean and std are over the responses with the same entry in `group_ids`.

    Raises:
        ValueError: the lengths differ, or a reward is not finite.
    """
    if len(rewards) != len(group_ids):
        raise ValueError(f"{len(rewards)} rewards but {len(group_ids)} group ids; give one group id per response")
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(
                f"reward {reward} of response {index} (group {group_ids[index]}) is not finite; "
                "the verifier must return a finite number"
            )
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(group_ids):
        members[group].append(index)
    advantages = [0.0] * len(rewards)
    for indices in members.values():
        for index, advantage in zip(indices, _group_advantages(config, [rewards[i] for i in indices]), strict=True):
            advantages[index] = advantage
    return advantages


def _group_advantages(config: Advantage, rewards: list[float]) -> list[float]:
    if min(rewards) == max(rewards):
        # Not left to the arithmetic: a mean off by one ulp, divided by a standard deviation of one ulp, would be ±1.
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    match config:
        case DrGrpo():
            return centred
        case Grpo(eps=eps):
            std = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - 1))
            return [c / (std + eps) for c in centred]
    assert_never(config)
