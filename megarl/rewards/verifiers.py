"""From a verifier's config to a function (prompt, response) -> score. Random rewards have none: they are drawn."""

import functools
import os
import re
from collections.abc import Callable
from typing import assert_never

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, ReasoningGymData
from megarl.config.reward import (
    AnswerReward,
    FunctionReward,
    Gsm8kReward,
    MathVerifyReward,
    RandomReward,
    ReasoningGymReward,
    RewardConfig,
)
from megarl.records import Prompt
from megarl.rewards.environment import check_named
from megarl.rewards.final_answer import drop_thoughts, ends_in_thought, extract_answer
from megarl.rewards.generated_task import GeneratedTaskScorer
from megarl.rewards.last_number import read_number, score_last_number
from megarl.rewards.math_answer import build_math_scorer
from megarl.rewards.process import ScoringProcess
from megarl.rewards.user_function import load_user_function, score_with_user_function

Verify = Callable[[Prompt, str], float]
VerifierConfig = MathVerifyReward | Gsm8kReward | ReasoningGymReward | FunctionReward


def check_reward(config: RewardConfig) -> None:
    """ConfigError when the verifier cannot be built: a pattern without a group, a variable that is not set, a function
    that does not import (in a process of its own, where it sees no secrets and cannot hang the trainer)."""
    if isinstance(config.verifier, AnswerReward) and config.verifier.answer_pattern is not None:
        _check_pattern(config.verifier.answer_pattern)
    if isinstance(config.verifier, FunctionReward):
        check_named(os.environ, config.verifier.environment)
        process = ScoringProcess(config, None)
        try:
            process.wait_ready()
        finally:
            process.close()


def build_verifier(config: VerifierConfig, data: DataConfig | None) -> Verify:
    """The scorer of one process; imports what it needs (never torch). `data` is reasoning-gym's alone."""
    pattern = re.compile(config.answer_pattern, re.DOTALL) if config.answer_pattern is not None else None
    match config:
        case MathVerifyReward():
            return _on_answer(build_math_scorer(), pattern)
        case Gsm8kReward():
            return _on_answer(score_last_number, pattern)
        case ReasoningGymReward(answer_pattern=answer_pattern):
            if data is None or not isinstance(data.train, ReasoningGymData):
                raise ConfigError('reward.verifier.kind = "reasoning_gym" needs data.train.source = "reasoning_gym"')
            return GeneratedTaskScorer(data.train, answer_pattern=answer_pattern)
        case FunctionReward():
            score = functools.partial(score_with_user_function, load_user_function(config), config)
            return score if pattern is None else _on_match(score, pattern)
    assert_never(config)


def build_answer_check(config: VerifierConfig) -> Callable[[str], None]:
    """What reads a ground truth before the run: raises ValueError with what is wrong with it."""
    match config:
        case MathVerifyReward():
            math_scorer = build_math_scorer()
            return lambda answer: _discard(math_scorer.read_gold(answer))
        case Gsm8kReward():
            return lambda answer: _discard(read_number(answer))
        case ReasoningGymReward() | FunctionReward():  # the entry, or whatever the function makes of it
            return _discard
    assert_never(config)


def describe_verifier(config: VerifierConfig | RandomReward) -> str:
    """Its name in messages."""
    return f"reward function {config.path}" if isinstance(config, FunctionReward) else f"verifier {config.kind}"


def _on_answer(score: Callable[..., float], pattern: re.Pattern[str] | None) -> Verify:
    """`score(ground truth, text)` on the response, or on what the pattern finds outside its thoughts; 0 without."""

    def verify(prompt: Prompt, response: str) -> float:
        thinking = ends_in_thought(prompt.text)
        if pattern is None:
            return score(prompt.answer, response, thinking=thinking)
        answer = extract_answer(pattern, drop_thoughts(response, thinking=thinking))
        return 0.0 if answer is None else score(prompt.answer, answer)

    return verify


def _on_match(score: Verify, pattern: re.Pattern[str]) -> Verify:
    """A user's function on what the pattern finds: what no answer is worth is the function's to say."""

    def verify(prompt: Prompt, response: str) -> float:
        spoken = drop_thoughts(response, thinking=ends_in_thought(prompt.text))
        return score(prompt, extract_answer(pattern, spoken) or "")

    return verify


def _discard(_: object) -> None:
    """A value that was read only to see whether it can be."""


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
