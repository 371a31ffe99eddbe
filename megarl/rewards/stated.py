r"""What a response says its answer is, as a text that is equal for equal answers as far as a text can be: for votes.

Numbers are compared by value (0.5, 1/2 and \frac12 are one answer), all else by its spelling without spaces. A response
that a verifier of mathematics found right has the ground truth's answer, however it is spelled.
"""

import re
from fractions import Fraction
from typing import assert_never

from megarl.config.reward import FunctionReward, Gsm8kReward, MathVerifyReward, ReasoningGymReward
from megarl.rewards.final_answer import drop_thoughts, ends_in_thought, extract_answer, find_answer, read_visible
from megarl.rewards.item import RewardItem
from megarl.rewards.last_number import Number, find_last_number, read_whole_number
from megarl.rewards.math_text import clean_expression

Judge = MathVerifyReward | Gsm8kReward | ReasoningGymReward | FunctionReward


def states_answers(judge: Judge) -> bool:
    """Whether an answer can be told from the response: not where only a user's function knows where it stands."""
    return not isinstance(judge, FunctionReward) or judge.answer_pattern is not None


def state_answer(judge: Judge, item: RewardItem, *, correct: bool) -> str | None:
    """None: it gives no answer. `correct`: the judge's verdict on it."""
    if correct and isinstance(judge, MathVerifyReward | Gsm8kReward):
        return _of_text(item.prompt.answer)
    thinking = ends_in_thought(item.prompt.text)
    if judge.answer_pattern is not None:
        pattern = re.compile(judge.answer_pattern, re.DOTALL)
        found = extract_answer(pattern, drop_thoughts(item.response, thinking=thinking))
        return _of_text(found) if found else None
    match judge:
        case MathVerifyReward():
            visible = read_visible(item.response, thinking=thinking)
            stated = find_answer(visible)
            return _of_text(stated.text) if stated else _of_number(find_last_number(visible))
        case Gsm8kReward():
            return _of_number(find_last_number(item.response, thinking=thinking))
        case ReasoningGymReward():
            return drop_thoughts(item.response, thinking=thinking).strip() or None
        case FunctionReward():
            return None
    assert_never(judge)


def _of_text(text: str) -> str | None:
    stated = find_answer(text)
    text = stated.text if stated is not None and stated.boxed else text
    number = read_whole_number(text)
    if number is not None:
        return _of_number(number)
    cleaned = re.sub(r"\\[dt]frac", r"\\frac", clean_expression(text))
    return "".join(cleaned.split()) or None


def _of_number(number: Number | None) -> str | None:
    return None if number is None else str(Fraction(number))
