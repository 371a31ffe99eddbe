"""From a verifier's config to a function (prompt, response) -> score. Random rewards have none: they are drawn."""

import functools
import re
from collections.abc import Callable
from typing import assert_never

from megarl.config.base import ConfigError
from megarl.config.data import (
    DataConfig,
    FunctionReward,
    Gsm8kReward,
    MathVerifyReward,
    RandomReward,
    ReasoningGymData,
    ReasoningGymReward,
    RewardConfig,
)
from megarl.records import Prompt
from megarl.rewards.generated_task import GeneratedTaskScorer
from megarl.rewards.last_number import score_last_number
from megarl.rewards.math_answer import build_math_scorer
from megarl.rewards.user_function import load_user_function, score_with_user_function

Verify = Callable[[Prompt, str], float]
VerifierConfig = MathVerifyReward | Gsm8kReward | ReasoningGymReward | FunctionReward


def check_reward(config: RewardConfig) -> None:
    """ConfigError when the verifier cannot be built: a function that does not import, a pattern without a group."""
    match config.verifier:
        case FunctionReward(path=path):
            load_user_function(path)
        case ReasoningGymReward(answer_pattern=str(pattern)):
            _check_pattern(pattern)
        case _:
            pass


def build_verifier(config: VerifierConfig, data: DataConfig) -> Verify:
    """The scorer of one process; imports what it needs (never torch)."""
    match config:
        case MathVerifyReward():
            math_scorer = build_math_scorer()
            return lambda prompt, response: math_scorer(prompt.answer, response)
        case Gsm8kReward():
            return lambda prompt, response: score_last_number(prompt.answer, response)
        case ReasoningGymReward(answer_pattern=pattern):
            if not isinstance(data.train, ReasoningGymData):
                raise ConfigError('reward.verifier.kind = "reasoning_gym" needs data.train.source = "reasoning_gym"')
            return GeneratedTaskScorer(data.train, answer_pattern=pattern)
        case FunctionReward(path=path):
            return functools.partial(score_with_user_function, load_user_function(path), path)
    assert_never(config)


def describe_verifier(config: VerifierConfig | RandomReward) -> str:
    """Its name in messages."""
    return f"reward function {config.path}" if isinstance(config, FunctionReward) else f"verifier {config.kind}"


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"reward.verifier.answer_pattern {pattern!r} is not a regular expression: {error}") from error
    if groups < 1:
        raise ConfigError(
            f"reward.verifier.answer_pattern {pattern!r} has no group; put the answer in parentheses, "
            "e.g. '<answer>(.*?)</answer>'"
        )
