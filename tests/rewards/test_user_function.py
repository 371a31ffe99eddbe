"""Users' functions: what they may return, other frameworks' signatures, and the trial call at start."""

import asyncio
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from megarl.config.base import ConfigError
from megarl.config.reward import FunctionReward, RewardConfig
from megarl.records import Prompt
from megarl.rewards.item import NoNumberError, RewardError
from megarl.rewards.pool import RewardPool
from megarl.rewards.user_function import read_score
from megarl.rewards.verifiers import build_verifier, check_reward
from tests.rewards.test_reward_pool import DATA, MODULE

PROMPT = Prompt(
    index=3,
    text="What is 3 + 4?",
    token_ids=(1,),
    answer="7",
    metadata={"data_source": "sums", "extra_info": {"level": 2}, "difficulty": "easy"},
)


class Tensor:
    """Like a tensor of one element: no number, but it holds one."""

    def item(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (False, 0.0),
        (np.bool_(True), 1.0),
        (np.float32(0.25), 0.25),
        (np.int64(2), 2.0),
        (np.array(0.75), 0.75),
        (np.array([0.75]), 0.75),
        (Fraction(1, 2), 0.5),
        (Tensor(), 0.5),
        ({"score": 1.0, "accuracy": True}, 1.0),
        ({"score": np.bool_(False)}, 0.0),
    ],
)
def test_a_function_returns_a_number_in_some_form(value: Any, score: float) -> None:
    assert read_score(value, "m:f") == score


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, r"m:f returned None \(NoneType\); expected a number"),
        (float("nan"), "returned nan; expected a finite number"),
        (np.float64("inf"), "returned inf"),
        (np.array(float("nan")), "returned nan"),
        ("1.0", r"returned '1.0' \(str\)"),
        (np.array([1.0, 2.0]), "expected a number"),
        ([1.0], "expected a number"),
        ({"reward": 1.0}, "a dict with 'reward'; expected \"score\""),
        ({"score": None}, "returned None"),
    ],
)
def test_what_is_no_number_is_an_error(value: Any, expected: str) -> None:
    with pytest.raises(NoNumberError, match=expected):
        read_score(value, "m:f")


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("verl_score", "verl"),
        ("trl_reward", "trl"),
        ("trl_named_columns", "trl"),
        ("trl_messages_reward", "trl_messages"),
    ],
)
def test_other_frameworks_functions_are_called_as_there(name: str, signature: Any) -> None:
    verify = build_verifier(FunctionReward(kind="function", path=f"{MODULE}:{name}", signature=signature), None)
    assert verify(PROMPT, "it is 7") == 1.0
    assert verify(PROMPT, "it is 8") == 0.0


def test_a_function_may_be_given_what_the_pattern_finds() -> None:
    config = FunctionReward(kind="function", path=f"{MODULE}:is_answer", answer_pattern="<answer>(.*?)</answer>")
    verify = build_verifier(config, None)
    assert verify(PROMPT, "<answer>8</answer> no: <answer> 7 </answer>") == 1.0
    assert verify(PROMPT, "<think><answer>7</answer></think>") == verify(PROMPT, "7") == 0.0


def test_another_frameworks_function_is_told_from_ours() -> None:
    with pytest.raises(ConfigError, match=r'signature may also be "verl" or "trl"'):
        check_reward(RewardConfig(verifier=FunctionReward(kind="function", path=f"{MODULE}:verl_score")))


def try_out(name: str, **fields: Any) -> float:
    """What a time-out is worth after the trial call."""
    config = RewardConfig(
        verifier=FunctionReward(kind="function", path=f"{MODULE}:{name}"), timeout_s=1.5, workers=1, **fields
    )
    with RewardPool(config, DATA, max_response_tokens=8, seed=0) as pool:
        asyncio.run(pool.try_out([PROMPT]))
        return pool.wrong


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none_for_empty", "returned None"),
        ("nan_for_truth", "returned nan"),
        ("hangs", r"response '' to data set prompt 3 .*: timeout; expected a number within reward.timeout_s = 1.5"),
        ("exits", "crash; expected a number"),
    ],
)
def test_a_function_that_cannot_score_is_found_at_start(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){name}.*{expected}"):
        try_out(name)


def test_a_function_that_raises_is_found_at_start_with_its_traceback() -> None:
    with pytest.raises(
        RewardError, match=r'(?s)needs_variable failed on .*reward.verifier.environment = \["JUDGE_URL"\]'
    ):
        try_out("needs_variable")


def test_the_trial_tells_what_a_wrong_answer_gets() -> None:
    assert try_out("minus_one_to_one") == -1.0
    assert try_out("five_to_ten") == 5.0
    assert try_out("minus_one_to_one", wrong=-3.0) == -3.0


def test_a_run_that_goes_on_keeps_what_its_trial_told() -> None:
    """A judge may answer otherwise the next time; what the configuration says is not asked."""
    verifier = FunctionReward(kind="function", path=f"{MODULE}:five_to_ten")
    for wrong, expected in ((None, 4.5), (-3.0, -3.0)):
        with RewardPool(
            RewardConfig(verifier=verifier, wrong=wrong, workers=1), DATA, max_response_tokens=8, seed=0
        ) as pool:
            assert pool.state_dict() == {"wrong": 0.0 if wrong is None else wrong}
            pool.load_state_dict({"wrong": 4.5})
            assert pool.wrong == expected
            with pytest.raises(ValueError, match="scorer state has keys"):
                pool.load_state_dict({})
