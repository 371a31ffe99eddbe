"""mean@k, pass@k and maj@k of one problem from its n sampled responses: expectations over subsets, not resampled.

Each is the mean, over all subsets of k of the n responses, of what the k would have given, computed in closed form. So
it is an unbiased estimate of what k fresh responses give, and has no noise of its own. mean@k is the same for every k.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Group = tuple[int, float]
"""Responses with one answer: how many, and the share of them that are correct."""


def mean_at_k(correct_PN: NDArray[np.bool_]) -> Floats:
    """[problems]: the share of each problem's responses that are correct. correct_PN: [problems, samples]."""
    return _checked(correct_PN).mean(axis=1, dtype=np.float64)


def pass_at_k(correct_PN: NDArray[np.bool_]) -> Floats:
    """[problems, n]: in column k - 1 the probability that one of k responses is correct, of n that were sampled.

    1 - C(n - c, k) / C(n, k) with c correct ones (arXiv 2107.03374, eq. 1), as the product over i < k of
    (n - c - i) / (n - i): no factorial overflows, and it is exactly 1 once k is above n - c.
    """
    num_samples = _checked(correct_PN).shape[1]
    wrong_P1 = num_samples - correct_PN.sum(axis=1, dtype=np.int64)[:, None]
    drawn_N = np.arange(num_samples)
    return 1.0 - np.cumprod(np.maximum(wrong_P1 - drawn_N, 0) / (num_samples - drawn_N), axis=1)


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], ks: Sequence[int]) -> list[float]:
    """For each k the probability that the answer which most of k responses give is correct; of one problem.

    answers: what each of the n responses says its answer is, equal texts being one answer. None: it gives no answer and
    has no vote. Of several answers with equally many votes one is drawn; without any vote there is no answer, which is
    wrong. Where the responses with one answer were judged differently it counts by the share that is correct.
    Raises ValueError where a k is not in 1 .. n.
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} verdicts")
    if wrong := [k for k in ks if not 1 <= k <= len(answers)]:
        raise ValueError(f"maj@k of {len(answers)} responses: expected k in 1 .. {len(answers)}, found {wrong}")
    verdicts: dict[str, list[bool]] = {}
    for answer, is_correct in zip(answers, correct, strict=True):
        if answer is not None:
            verdicts.setdefault(answer, []).append(bool(is_correct))
    groups = tuple(sorted((len(of_answer), sum(of_answer) / len(of_answer)) for of_answer in verdicts.values()))
    return [_majority(groups, len(answers), k) for k in ks]


@lru_cache(maxsize=65536)
def _majority(groups: tuple[_Group, ...], n: int, k: int) -> float:
    """The sum over v of the probability that v votes win, with a correct answer; problems often share their counts.

    A subset of k is as likely as that, of n independent draws each taken with probability k / n, k are taken: so the
    counts are binomial given their sum, which keeps every number in range.
    """
    if not any(share for _, share in groups):
        return 0.0
    total = sum(_wins_with(votes, groups, n, k) for votes in range(1, min(k, max(groups)[0]) + 1))
    return min(1.0, total / float(_binomial(n, k, n)[k]))


def _wins_with(votes: int, groups: tuple[_Group, ...], n: int, k: int) -> float:
    """Probability that k are taken, the most votes of an answer are `votes`, and the one drawn of those is correct.

    Over the groups that have so many, two polynomials in the responses taken, by how many answers have `votes` of them:
    the probability, and the probability times the sum of those answers' correct shares. All others are taken freely.
    """
    large = [group for group in groups if group[0] >= votes]
    free = n - sum(count for count, _ in large)
    most_tied = min(len(large), k // votes)
    plain_TK, weighted_TK = np.zeros((2, most_tied + 1, k + 1))
    plain_TK[0] = _binomial(free, k, n)[: k + 1]
    for count, share in large:
        taken = _binomial(count, k, n)
        below = taken[:votes]
        at = float(taken[votes])
        before_plain, before_weighted = plain_TK, weighted_TK
        plain_TK, weighted_TK = _times(before_plain, below), _times(before_weighted, below)
        plain_TK[1:, votes:] += at * before_plain[:-1, : k + 1 - votes]
        weighted_TK[1:, votes:] += at * (before_weighted + share * before_plain)[:-1, : k + 1 - votes]
    tied = np.arange(1, most_tied + 1)
    return float((weighted_TK[1:, k] / tied).sum())


def _times(polynomials_TK: Floats, factor: Floats) -> Floats:
    """Each row times the polynomial `factor`, up to the rows' degree."""
    product = np.zeros_like(polynomials_TK)
    width = polynomials_TK.shape[1]
    for degree, coefficient in enumerate(factor[:width].tolist()):
        product[:, degree:] += coefficient * polynomials_TK[:, : width - degree]
    return product


@lru_cache(maxsize=4096)
def _binomial(count: int, k: int, n: int) -> Floats:
    """[max(count, k) + 1]: probability that j of `count` are taken, each with probability k / n; 0 beyond count."""
    values = np.zeros(max(count, k) + 1)
    if k == n:
        values[count] = 1.0
        return values
    log_taken, log_left = math.log(k / n), math.log1p(-k / n)
    for j in range(count + 1):
        log_choose = math.lgamma(count + 1) - math.lgamma(j + 1) - math.lgamma(count - j + 1)
        values[j] = math.exp(log_choose + j * log_taken + (count - j) * log_left)
    return values


def _checked(correct_PN: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if correct_PN.ndim != 2 or not correct_PN.shape[1]:
        raise ValueError(f"expected verdicts of shape [problems, samples], found {correct_PN.shape}")
    return correct_PN


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({n, *(1 << exponent for exponent in range(n.bit_length()))})
