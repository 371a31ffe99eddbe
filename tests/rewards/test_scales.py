"""On whatever scale a function scores: a truncated, hung or crashed answer never gets more than a wrong one."""

import asyncio

import pytest

from megarl.config.reward import FunctionReward, RandomReward, RewardConfig
from megarl.records import Prompt, Score
from megarl.rewards.item import RewardItem
from megarl.rewards.pool import RewardPool
from tests.rewards.scoring import score_all
from tests.rewards.test_reward_pool import DATA, MODULE

PROMPT = Prompt(index=0, text="p", token_ids=(1,), answer="truth")
SCALES = [
    ("minus_one_to_one", -1.0, 1.0),
    ("zero_to_one", 0.0, 1.0),
    ("minus_ten_to_minus_five", -10.0, -5.0),
    ("five_to_ten", 5.0, 10.0),
]


def score(name: str, responses: list[str], *, truncated: str = "", **fields: float) -> list[Score]:
    """After the trial call; `truncated` has a t where the response was cut off."""
    config = RewardConfig(
        verifier=FunctionReward(kind="function", path=f"{MODULE}:{name}"), timeout_s=1.5, workers=2, **fields
    )
    cut = [sign == "t" for sign in truncated.ljust(len(responses))]
    items = [
        RewardItem(
            prompt=PROMPT,
            response=response,
            response_tokens=1,
            prompt_index=0,
            sample_index=index,
            truncated=cut[index],
        )
        for index, response in enumerate(responses)
    ]

    async def run(pool: RewardPool) -> list[Score]:
        await pool.try_out([PROMPT])
        return await score_all(pool, items)

    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        return asyncio.run(run(pool))


@pytest.mark.parametrize(("name", "wrong", "right"), SCALES)
def test_no_failure_pays_more_than_a_wrong_answer(name: str, wrong: float, right: float) -> None:
    scores = score(
        name,
        ["right", "bad", "half", "hang", "exit", "right", "bad", "half"],
        truncated="     ttt",
        truncated_factor=0.0,
        correct_from=right,
    )
    half = (wrong + right) / 2
    assert [s.reward for s in scores] == [right, wrong, half, wrong, wrong, wrong, wrong, wrong]
    assert [s.failure for s in scores[3:5]] == ["timeout", "crash"]
    assert [s.correct for s in scores] == [True, False, False, False, False, True, False, False]


@pytest.mark.parametrize(("name", "wrong", "right"), SCALES)
def test_a_truncated_answer_keeps_its_share_of_the_lead(name: str, wrong: float, right: float) -> None:
    scores = score(name, ["right", "bad"], truncated="tt", truncated_factor=0.5)
    assert [s.reward for s in scores] == [(wrong + right) / 2, wrong]
    assert [s.verifier for s in scores] == [right, wrong]


def test_failing_pays_no_more_than_the_worst_answer_to_the_same_prompt() -> None:
    scores = score("zero_to_one", ["worse", "hang", "right"], truncated="  t", truncated_factor=0.0)
    assert [s.reward for s in scores] == [-0.5, -0.5, -0.5]
    scores = score("zero_to_one", ["bad", "exit"], wrong=-2.0)
    assert [s.reward for s in scores] == [0.0, -2.0]


def test_correct_is_a_threshold() -> None:
    assert [s.correct for s in score("zero_to_one", ["right", "half", "bad"])] == [True, False, False]
    assert [s.correct for s in score("zero_to_one", ["right", "half", "bad"], correct_from=0.5)] == [True, True, False]
    # 5 is on a scale whose right answers get 10.
    assert [s.correct for s in score("five_to_ten", ["right", "bad"], correct_from=10.0)] == [True, False]


@pytest.mark.parametrize(
    ("distribution", "threshold", "expected"),
    [
        ("bernoulli", None, {True, False}),
        ("uniform", None, {None}),
        ("gaussian", None, {None}),
        ("uniform", 0.5, {True, False}),
    ],
)
def test_draws_are_correct_where_a_threshold_says_so(distribution, threshold, expected) -> None:
    config = RewardConfig(verifier=RandomReward(kind="random", distribution=distribution), correct_from=threshold)
    items = [
        RewardItem(prompt=PROMPT, response="", response_tokens=1, prompt_index=0, sample_index=index)
        for index in range(32)
    ]
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        scores = asyncio.run(score_all(pool, items))
    assert {s.correct for s in scores} == expected
    if threshold is not None:
        assert all(s.correct == (s.verifier >= threshold) for s in scores)
