"""What a response says its answer is: one text for equal answers, none where it says nothing."""

from typing import Any

import pytest

from megarl.config.reward import FunctionReward, Gsm8kReward, MathVerifyReward, ReasoningGymReward
from megarl.records import Prompt
from megarl.rewards.item import RewardItem
from megarl.rewards.stated import Judge, state_answer, states_answers

MATH = MathVerifyReward(kind="math_verify")
GSM8K = Gsm8kReward(kind="gsm8k")
GYM = ReasoningGymReward(kind="reasoning_gym")
FUNCTION = FunctionReward(kind="function", path="a.b:c")


def stated(judge: Judge, response: str, *, correct: bool = False, **prompt: Any) -> str | None:
    values: dict[str, Any] = {"index": 0, "text": "p", "token_ids": (1,), "answer": "1/2"} | prompt
    item = RewardItem(prompt=Prompt(**values), response=response, response_tokens=3, prompt_index=0, sample_index=0)
    return state_answer(judge, item, correct=correct)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{\frac{3}{4}}", "3/4"),
        (r"so \boxed{0.75}", "3/4"),
        (r"so \boxed{\dfrac34}.", "3/4"),
        ("The answer is 1,200.", "1200"),
        (r"\boxed{3x + 1}", "3x+1"),
        (r"\boxed{ 3x+1 }", "3x+1"),
        (r"\boxed{\dfrac{x}{2}}", r"\frac{x}{2}"),
        (r"\boxed{3x}", "3x"),
        ("first 3, then 9", "9"),
        ("no idea", None),
        (r"\boxed{}", None),
        ("<think>it is 5", None),
    ],
)
def test_mathematics(response: str, answer: str | None) -> None:
    assert stated(MATH, response) == answer


def test_right_answers_are_one_answer_however_they_are_spelled() -> None:
    assert stated(MATH, r"\boxed{\frac{\sqrt{4}}{4}}", correct=True) == "1/2"
    assert stated(GSM8K, "it is 0.50", correct=True) == "1/2"
    assert stated(MATH, "x", correct=True, answer=r"\boxed{x^2}") == "x^2"


def test_the_last_number_of_gsm8k() -> None:
    assert stated(GSM8K, "3 and then #### 1,234") == "1234"
    assert stated(GSM8K, "3 + 4") == "4"
    assert stated(GSM8K, "none") is None


def test_a_generated_task_takes_the_whole_response() -> None:
    assert stated(GYM, " a b \n", correct=True) == "a b"
    assert stated(GYM, "<think>x</think> 7") == "7"
    assert stated(GYM, "  ") is None


def test_a_pattern_says_where_the_answer_stands() -> None:
    judge = FunctionReward(kind="function", path="a.b:c", answer_pattern="<answer>(.*?)</answer>")
    assert stated(judge, "<answer> 0.5 </answer>") == "1/2"
    assert stated(judge, "nothing") is None
    assert states_answers(judge)


def test_of_a_function_alone_nobody_knows() -> None:
    assert not states_answers(FUNCTION)
    assert stated(FUNCTION, "7") is None
    assert all(map(states_answers, (MATH, GSM8K, GYM)))
