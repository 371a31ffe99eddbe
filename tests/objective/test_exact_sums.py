import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.objective.exact_sums import exact_sums
from tests.objective.simulated_ranks import SingleRank, on_ranks, raised_on_ranks

FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FLOATS, max_size=20))
def test_a_sum_is_within_2_to_the_minus_61_of_the_largest_magnitude_per_value(values):
    (total,) = exact_sums([torch.tensor(values, dtype=torch.float64)], SingleRank())
    exact = sum((Fraction(value) for value in values), Fraction(0))
    largest = Fraction(max((abs(value) for value in values), default=0.0))
    rounded = Fraction(math.ulp(total)) / 2
    assert abs(Fraction(total) - exact) <= len(values) * (largest / 2**60 + Fraction(1, 2**900)) + rounded


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=20), seed=st.integers(0, 100))
def test_no_layout_or_order_changes_a_bit(values, seed):
    values_T = torch.tensor(values)
    shuffled_T = values_T[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    expected = exact_sums([values_T, values_T.square()], SingleRank())
    shares = [shuffled_T[:1], shuffled_T[1:1], shuffled_T[1:]]
    found, calls = on_ranks(lambda share, reduce: exact_sums([share, share.square()], reduce), shares)
    assert found == [expected] * 3
    assert [len(rank) for rank in calls] == [2, 2, 2]


def test_cancellation_leaves_what_float64_addition_loses():
    values_T = torch.tensor([1.0, 2.0**-55, -1.0], dtype=torch.float64)
    assert exact_sums([values_T], SingleRank()) == [2.0**-55]
    assert values_T.sum().item() == 0.0


def test_no_tokens_and_no_columns():
    assert exact_sums([torch.empty(0), torch.zeros(2)], SingleRank()) == [0.0, 0.0]
    assert exact_sums([], SingleRank()) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_rank_refuses_what_is_not_finite(bad):
    shares = [torch.tensor([1.0]), torch.tensor([bad])]
    texts = raised_on_ranks(lambda share, reduce: exact_sums([torch.ones(1), share], reduce), shares)
    assert all("column 1 of the sums has a NaN or infinite value" in text for text in texts)
