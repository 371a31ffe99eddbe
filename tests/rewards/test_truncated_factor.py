"""reward.truncated_factor: what a response cut off at the limit keeps of its verifier's reward."""

import asyncio

import pytest

from megarl.config.data import DataConfig, ReasoningGymData
from megarl.config.reward import RandomReward, RewardConfig
from megarl.records import Prompt
from megarl.rewards.item import RewardItem
from megarl.rewards.pool import RewardPool
from tests.rewards.scoring import score_all

DATA = DataConfig(train=ReasoningGymData(task="chain_sum"))
PROMPT = Prompt(index=0, text="p", token_ids=(1,), answer="1")


@pytest.mark.parametrize(("factor", "kept"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_only_a_truncated_response_is_scaled(factor: float, kept: float) -> None:
    config = RewardConfig(verifier=RandomReward(kind="random", p=1.0), truncated_factor=factor)
    items = [
        RewardItem(prompt=PROMPT, response="", response_tokens=8, prompt_index=0, sample_index=i, truncated=truncated)
        for i, truncated in enumerate((False, True))
    ]
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        scores = asyncio.run(score_all(pool, items))
    assert [score.reward for score in scores] == [1.0, kept]
    # The verifier's own number stays, whatever the advantage sees.
    assert [score.verifier for score in scores] == [1.0, 1.0]
