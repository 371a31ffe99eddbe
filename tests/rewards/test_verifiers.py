"""Verifiers without processes: hand-made cases."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.config.reward import RandomReward
from megarl.rewards.final_answer import ends_in_thought, find_answer, read_visible
from megarl.rewards.last_number import read_number, score_last_number
from megarl.rewards.math_answer import build_math_scorer
from megarl.rewards.overlong import compute_overlong_penalty
from megarl.rewards.random_draw import draw_random_reward
from tests.rewards import math_cases, number_cases


@pytest.fixture(scope="module")
def math_scorer() -> Callable[[str, str], float]:
    return build_math_scorer()


MATH_CASES = [
    pytest.param(*case, id=f"{kind}{number}")
    for kind, cases in math_cases.BY_KIND.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("answer", "response", "right"), MATH_CASES)
def test_math_verify_table(math_scorer: Callable[[str, str], float], answer: str, response: str, right: int) -> None:
    assert math_scorer(answer, response) == right


@pytest.mark.parametrize(("answer", "response", "right"), number_cases.CASES)
def test_gsm8k_table(answer: str, response: str, right: int) -> None:
    assert score_last_number(answer, response) == right


@settings(deadline=None, max_examples=150)
@given(
    response=st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    r"\boxed{",
                    r"}",
                    r"{",
                    r"\frac",
                    r"\sqrt",
                    r"$",
                    r"$$",
                    r"\(",
                    r"\)",
                    r"answer:",
                    r"is",
                    r"1",
                    r"23",
                    r",",
                    r".",
                    r"/",
                    r"or",
                    r"**",
                    r"_",
                    r"`",
                    r"####",
                    r"<",
                    r">",
                    r"=",
                    r"\approx",
                    r"∞",
                    r"½",
                    r"²",
                    r"\text{",
                    r"^",
                    r"x",
                    r"NaN",
                ]
            )
        ).map(" ".join),
    )
)
def test_no_response_raises(math_scorer: Callable[[str, str], float], response: str) -> None:
    """An exception would end the run: whatever a model writes is right or wrong."""
    for answer in ("7", "x+1", "yes", r"\{1,2\}", r"\sqrt{2}"):
        assert math_scorer(answer, response) in (0.0, 1.0)
    assert score_last_number("7", response) in (0.0, 1.0)


def test_long_responses_are_read_in_time(math_scorer: Callable[[str, str], float]) -> None:
    """Text that invites a search to start over at every position."""
    start = time.monotonic()
    for piece in (
        "<think>",
        "**a ",
        "\\boxed{",
        "1,234 ",
        "`",
        "_a ",
        "answer to ",
        "$",
        "#### 1 ",
        "1 2/3 ",
        "( ",
        " ",
    ):
        text = piece * (60_000 // len(piece))
        assert score_last_number("7", text) == 0.0
        find_answer(read_visible(text))
    assert time.monotonic() - start < 20.0


@pytest.mark.parametrize("answer", ["", "  ", "nan", "NaN", "$", r"\frac{", "{", "="])
def test_math_verify_refuses_what_is_no_ground_truth(math_scorer: Callable[[str, str], float], answer: str) -> None:
    with pytest.raises(ValueError, match="the ground truth"):
        math_scorer(answer, "3")


@pytest.mark.parametrize("answer", ["", "nan", "seven", "12 and 13", "1/0", "1e999999"])
def test_gsm8k_refuses_what_is_no_ground_truth(answer: str) -> None:
    with pytest.raises(ValueError, match="the ground truth"):
        read_number(answer)


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("Q\n<think>\n", True),
        ("Q <think>", True),
        ("Q <think>x</think>\n", False),
        ("Say <think> first.", False),
        ("Q", False),
        ("", False),
    ],
)
def test_a_prompt_may_end_in_a_thought(prompt: str, inside: bool) -> None:
    assert ends_in_thought(prompt) is inside
    # Then the response's beginning is a thought, and without an end all of it.
    assert score_last_number("7", "it is 7", thinking=inside) == float(not inside)
    assert score_last_number("7", "it is 8</think> 7", thinking=inside) == 1.0


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ("1/2", r"so \boxed{\frac{1}{2}}", 1.0),
        (r"\frac12", "The answer is 0.5", 1.0),
        (r"\frac{3}{4}", r"\boxed{\frac{6}{8}}", 1.0),
        (r"\frac{3}{4}", r"\boxed{\frac{4}{3}}", 0.0),
        ("34", r"First 35. Final: \boxed{34}, not 36.", 1.0),
        ("36", r"First 35. Final: \boxed{34}, not 36.", 0.0),
        ("(0,1]", r"\boxed{(0,1]}", 1.0),
        ("(0,1]", r"\boxed{(0,1)}", 0.0),
        (r"[0,\infty)", r"$\boxed{[0, \infty)}$", 1.0),
        ("x^2+1", r"\boxed{1+x^2}", 1.0),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", 1.0),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1.0),
        (r"\boxed{8}", "$8$", 1.0),
        ("1,000", "1000", 1.0),
        ("3", "34", 0.0),
        ("34", "", 0.0),
        ("34", "I do not know", 0.0),
        ("34", r"\boxed{", 0.0),
    ],
)
def test_math_verify(math_scorer: Callable[[str, str], float], answer: str, response: str, expected: float) -> None:
    assert math_scorer(answer, response) == expected


def test_math_verify_refuses_an_empty_ground_truth(math_scorer: Callable[[str, str], float]) -> None:
    with pytest.raises(ValueError, match="finds no expression in the ground truth ''"):
        math_scorer("", "3")


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("She has 72.", "72"),
        ("#### 1,234,567", "1234567"),
        ("It costs $1,234.50.", "1234.50"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("x=-3", "-3"),
        ("x = \N{MINUS SIGN}3", "-3"),
        ("5-3", "3"),
        ("(2)-3", "3"),
        ("72.00", "72"),
        ("1, 2", "2"),
        ("1,2", "2"),
        ("1234,567", "567"),
        (".5", "0.5"),
        ("20%", "20"),
        ("**18** apples", "18"),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(response: str, value: str | None) -> None:
    assert score_last_number(value or "0", response) == (0.0 if value is None else 1.0)
    assert score_last_number("987654", response) == 0.0


def test_gsm8k_compares_values() -> None:
    assert score_last_number("1,000", "so 10 * 100 = 1000.00.") == 1.0
    assert score_last_number("72", "72 or 73") == 0.0
    assert score_last_number("72", "none") == 0.0
    with pytest.raises(ValueError, match="no number"):
        score_last_number("many", "3")


def test_overlong_has_the_papers_values() -> None:
    """arXiv 2503.14476: maximum 20480, cache 4096."""
    lengths = (1, 16384, 17408, 18432, 20480, 30000)
    values = [compute_overlong_penalty(n, max_tokens=20480, cache_tokens=4096) for n in lengths]
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert compute_overlong_penalty(18432, max_tokens=20480, cache_tokens=4096, factor=0.2) == pytest.approx(-0.1)


def draw_many(config: RandomReward, *, seed: int = 0, step: int = 1) -> np.ndarray:
    draws = [
        draw_random_reward(config, seed=seed, step=step, prompt_index=prompt, sample_index=sample)
        for prompt in range(500)
        for sample in range(8)
    ]
    return np.array(draws)


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        (RandomReward(kind="random", p=0.5), 0.5, 0.5),
        (RandomReward(kind="random", p=0.2), 0.2, 0.4),
        (RandomReward(kind="random", distribution="uniform"), 0.5, 12**-0.5),
        (RandomReward(kind="random", distribution="gaussian", mean=2.0, std=3.0), 2.0, 3.0),
    ],
)
def test_random_rewards_have_their_moments_and_no_correlation(config: RandomReward, mean: float, std: float) -> None:
    """4000 draws: the mean is within 4 standard errors, neighbours, steps and seeds are uncorrelated."""
    draws = draw_many(config)
    assert abs(draws.mean() - mean) < 4 * std / 4000**0.5
    assert draws.std() == pytest.approx(std, rel=0.06)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.07
    for other in (draw_many(config, step=2), draw_many(config, seed=1), draw_many(config, seed=-1)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.07


def test_random_rewards_at_the_ends() -> None:
    assert set(draw_many(RandomReward(kind="random", p=0.0))) == {0.0}
    assert set(draw_many(RandomReward(kind="random", p=1.0))) == {1.0}
    assert set(draw_many(RandomReward(kind="random", p=0.5))) == {0.0, 1.0}


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_a_random_reward_is_the_first_draw_of_a_generator_of_its_own(distribution: str) -> None:
    """Whatever was drawn before it, in this thread or another."""
    config = RandomReward(kind="random", distribution=distribution)  # type: ignore[arg-type]

    def own(prompt: int, sample: int) -> float:
        counter, key = np.array([0, 3, prompt, sample], np.uint64), np.array([7, 0x7265776172640001], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        return float(generator.random() if distribution == "uniform" else generator.normal(config.mean, config.std))

    def draw(place: tuple[int, int]) -> float:
        return draw_random_reward(config, seed=7, step=3, prompt_index=place[0], sample_index=place[1])

    places = [(prompt, sample) for prompt in range(50) for sample in range(4)]
    expected = list(itertools.starmap(own, places))
    assert list(map(draw, places)) == expected
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, places)) == expected


def test_random_reward_is_a_fixed_function_of_its_key() -> None:
    """A golden value: a resumed run with another numpy must draw the same."""
    config = RandomReward(kind="random", distribution="uniform")
    again = [draw_random_reward(config, seed=7, step=3, prompt_index=2, sample_index=1) for _ in range(2)]
    assert again[0] == again[1] == pytest.approx(GOLDEN_UNIFORM, abs=0)


GOLDEN_UNIFORM = 0.35038149394668183
