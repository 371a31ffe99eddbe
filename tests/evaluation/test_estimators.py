"""pass@k and maj@k against the enumeration of all subsets, and their limits."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.evaluation.estimators import majority_at_k, mean_at_k, pass_at_k, powers_of_two


def verdicts(*rows: str) -> np.ndarray:
    """One row a problem, "x" a correct response."""
    return np.array([[letter == "x" for letter in row] for row in rows])


def majority_by_enumeration(answers: list[str | None], correct: list[bool], k: int) -> Fraction:
    """Every subset; of tied answers each is as likely, and a response with it stands for the answer."""
    total = Fraction(0)
    for subset in itertools.combinations(range(len(answers)), k):
        votes = Counter(answers[index] for index in subset if answers[index] is not None)
        if not votes:
            continue
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        for winner in winners:
            judged = [correct[index] for index in subset if answers[index] == winner]
            total += Fraction(sum(judged), len(judged) * len(winners))
    return total / math.comb(len(answers), k)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_mean_over_all_subsets(n: int) -> None:
    rows = verdicts(*("x" * c + "." * (n - c) for c in range(n + 1)))
    found = pass_at_k(rows)
    assert found.shape == (n + 1, n)
    for row, of_row in zip(rows, found, strict=True):
        expected = [np.mean([any(subset) for subset in itertools.combinations(row, k)]) for k in range(1, n + 1)]
        assert of_row == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_by_hand() -> None:
    # 4 responses, 1 correct: 1 - C(3, k) / C(4, k).
    assert pass_at_k(verdicts(".x..")).tolist() == [[0.25, 0.5, 0.75, 1.0]]


def test_pass_at_1_is_the_mean_and_large_counts_stay_finite() -> None:
    rows = np.random.default_rng(0).random((20, 4096)) < 0.001
    found = pass_at_k(rows)
    assert found[:, 0] == pytest.approx(mean_at_k(rows), abs=1e-15)
    exact = [1 - Fraction(math.comb(4096 - int(c), 700), math.comb(4096, 700)) for c in rows.sum(axis=1)]
    assert found[:, 699] == pytest.approx([float(value) for value in exact], rel=1e-12)
    assert np.all(np.diff(found, axis=1) >= -1e-15)


def test_pass_at_k_is_unbiased_in_simulation() -> None:
    """Of 8 responses, each correct with probability 0.2: the mean of many estimates is 1 - 0.8^k. The plug-in
    1 - (1 - c/8)^k is far below for the larger k, so the test can tell them apart."""
    rows = np.random.default_rng(1).random((40_000, 8)) < 0.2
    found = pass_at_k(rows).mean(axis=0)
    expected = [1 - 0.8**k for k in range(1, 9)]
    assert found == pytest.approx(expected, abs=0.008)
    plugged = (1 - (1 - mean_at_k(rows)) ** 8).mean()
    assert plugged < expected[7] - 0.05


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["7", "8", "9", "10", None]), st.booleans()), min_size=1, max_size=8))
def test_majority_is_the_mean_over_all_subsets(drawn: list[tuple[str | None, bool]]) -> None:
    answers, correct = [answer for answer, _ in drawn], [verdict for _, verdict in drawn]
    ks = range(1, len(drawn) + 1)
    expected = [float(majority_by_enumeration(answers, correct, k)) for k in ks]
    assert majority_at_k(answers, correct, ks) == pytest.approx(expected, abs=1e-12)


def test_ties_share_the_win() -> None:
    # Two against two: one of both is drawn.
    assert majority_at_k(["7", "7", "8", "8"], [True, True, False, False], [4]) == pytest.approx([0.5])
    # Three answers of one vote each.
    assert majority_at_k(["7", "8", "9"], [True, False, False], [3]) == pytest.approx([1 / 3])
    # Of two responses: both 7 (1 of 3 subsets), or a tie of 7 and 8 (2 of 3).
    assert majority_at_k(["7", "7", "8"], [True, True, False], [1, 2, 3]) == pytest.approx([2 / 3, 2 / 3, 1.0])


def test_who_gives_no_answer_has_no_vote() -> None:
    assert majority_at_k([None, None, None, "7"], [False, False, False, True], [1, 4]) == pytest.approx([0.25, 1.0])
    # Nobody votes: wrong, whatever the verdicts say.
    assert majority_at_k([None, None], [True, True], [1, 2]) == [0.0, 0.0]


def test_majority_of_one_is_the_share_of_correct_answers() -> None:
    answers = ["7", "8", "7", "9", None]
    assert majority_at_k(answers, [True, False, True, True, False], [1]) == pytest.approx([3 / 5])


def test_an_answer_that_was_judged_differently_counts_by_its_share() -> None:
    assert majority_at_k(["7", "7", "7", "7"], [True, True, True, False], [4]) == pytest.approx([0.75])


def test_majority_of_many_stays_in_range() -> None:
    """700 of 1024 say 7, against 324 other answers of one vote each: 7 wins almost surely, from few votes on."""
    answers = ["7"] * 700 + [f"other {number}" for number in range(324)]
    correct = [True] * 700 + [False] * 324
    found = majority_at_k(answers, correct, [1, 512, 1024])
    assert found == pytest.approx([700 / 1024, 1.0, 1.0], abs=1e-9)
    assert max(found) <= 1.0


def test_majority_refuses_what_it_has_no_responses_for() -> None:
    with pytest.raises(ValueError, match=r"expected k in 1 \.\. 2, found \[0, 3\]"):
        majority_at_k(["7", "7"], [True, True], [0, 1, 3])
    with pytest.raises(ValueError, match="2 answers but 1 verdicts"):
        majority_at_k(["7", "7"], [True], [1])


def test_verdicts_without_samples_are_refused() -> None:
    for shape in ((3,), (3, 0)):
        with pytest.raises(ValueError, match="expected verdicts of shape"):
            pass_at_k(np.zeros(shape, dtype=bool))


def test_powers_of_two_end_with_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
