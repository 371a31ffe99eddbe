"""Scores of items that have all come, as the loop makes them."""

from collections.abc import Sequence

from megarl.records import Score
from megarl.rewards.item import RewardItem
from megarl.rewards.pool import RewardPool


async def score_all(pool: RewardPool, items: Sequence[RewardItem], *, step: int = 1) -> list[Score]:
    """One score per item, in order."""
    return pool.conclude(items, await pool.verify(items, step=step))
