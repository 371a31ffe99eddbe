import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.objective.order_statistics import count, kth_smallest, smallest_k_mask
from tests.objective.simulated_ranks import SingleRank, on_ranks, raised_on_ranks

ALONE = SingleRank()
VALUES = {
    torch.float32: st.floats(width=32, allow_nan=False),
    torch.float64: st.floats(width=64, allow_nan=False),
    torch.int64: st.integers(-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("dtype", list(VALUES), ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_order_statistic_is_that_of_the_sorted_list(dtype, data):
    # Few distinct values among them, so that ties happen; -0.0, infinities and subnormals come from the strategy.
    pool = data.draw(st.lists(VALUES[dtype], min_size=1, max_size=6))
    values = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=20))
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=5))
    found = kth_smallest(torch.tensor(values, dtype=dtype), ranks, ALONE)
    assert found.dtype == dtype
    assert found.tolist() == [sorted(values)[rank] for rank in ranks]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1e-40, 2.0, 2.0000002, math.inf]), min_size=1, max_size=12),
    cuts=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_ranks_agree_on_the_order_statistics_of_all_values(values, cuts):
    low, high = sorted(cuts)
    values_T = torch.tensor(values)
    shares = [values_T[:low], values_T[low:high], values_T[high:]]
    ranks = list(range(len(values)))
    found, calls = on_ranks(lambda share, reduce: kth_smallest(share, ranks, reduce).tolist(), shares)
    assert found == [sorted(values_T.tolist())] * 3
    assert calls[0] == calls[1] == calls[2]


def test_rounds_are_few_and_of_a_size_that_does_not_grow_with_the_values():
    def run(num_values, dtype):
        generator = torch.Generator().manual_seed(1)
        values_T = torch.randn(num_values, generator=generator).to(dtype)
        _, calls = on_ranks(lambda share, reduce: kth_smallest(share, [num_values // 3], reduce), [values_T])
        return calls[0]

    assert run(10, torch.float32) == run(100_000, torch.float32) == [("sum", (65537,), torch.int64)] * 2
    assert run(10, torch.float64) == run(100_000, torch.float64) == [("sum", (65537,), torch.int64)] * 4


def test_several_ranks_share_the_rounds():
    values_T = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    ranks = [0, 100, 2500, 4999]
    (found,), (calls,) = on_ranks(lambda share, reduce: kth_smallest(share, ranks, reduce), [values_T])
    assert torch.equal(found, values_T.sort().values[torch.tensor(ranks)])
    assert len(calls) == 2
    assert max(shape[0] for _, shape, _ in calls) <= len(ranks) * 65536 + 1


def test_no_rank_asked_no_collective():
    (found,), (calls,) = on_ranks(lambda share, reduce: kth_smallest(share, [], reduce), [torch.ones(3)])
    assert found.shape == (0,)
    assert calls == []


def test_every_rank_refuses_a_nan_and_a_rank_that_does_not_exist():
    with_nan = [torch.tensor([1.0, math.nan]), torch.tensor([2.0]), torch.empty(0)]
    for text in raised_on_ranks(lambda share, reduce: kth_smallest(share, [0], reduce), with_nan):
        assert "1 of the values to be ordered are NaN" in text
    for rank in (-1, 2):
        shares = [torch.ones(2), torch.empty(0)]
        for text in raised_on_ranks(lambda share, reduce, rank=rank: kth_smallest(share, [rank], reduce), shares):
            assert f"order statistics [{rank}] were asked of 2 values; expected 0 to 1" in text
    with pytest.raises(TypeError, match="float16"):
        kth_smallest(torch.ones(2, dtype=torch.float16), [0], ALONE)


def test_count():
    shares = [torch.tensor([True, False, True]), torch.zeros(0, dtype=torch.bool), torch.tensor([True])]
    assert on_ranks(count, shares)[0] == [3, 3, 3]
    assert on_ranks(count, [4, 0])[0] == [4, 4]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 0.5]), st.integers(0, 2), st.booleans()), min_size=1, max_size=14
    ),
    k=st.integers(0, 15),
    cut=st.integers(0, 14),
)
def test_smallest_k_mask_is_the_head_of_the_lexicographic_order(rows, k, cut):
    value_T = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    group_T = torch.tensor([row[1] for row in rows])
    eligible_T = torch.tensor([row[2] for row in rows])
    unique_T = torch.arange(len(rows)).flip(0)
    order = sorted(
        (value, group, len(rows) - 1 - index) for index, (value, group, eligible) in enumerate(rows) if eligible
    )
    expected = {len(rows) - 1 - last for _, _, last in order[:k]}

    def choose(part, reduce):
        keys = (value_T[part], group_T[part], unique_T[part])
        return smallest_k_mask(keys, eligible_T=eligible_T[part], k=k, reduce=reduce)

    (first, second), calls = on_ranks(choose, [slice(0, cut), slice(cut, None)])
    assert set(torch.cat((first, second)).nonzero().flatten().tolist()) == expected
    assert calls[0] == calls[1]


def test_tokens_that_nothing_tells_apart_are_refused():
    keys = [torch.zeros(2), torch.zeros(2, dtype=torch.int64)]
    shares = [torch.ones(2, dtype=torch.bool)] * 2
    texts = raised_on_ranks(lambda share, reduce: smallest_k_mask(keys, eligible_T=share, k=3, reduce=reduce), shares)
    assert all("4 tokens are equal in all 2 keys and 3 of them" in text for text in texts)


def test_a_nan_key_matters_only_where_the_token_is_eligible():
    key_T = torch.tensor([math.nan, 2.0, 1.0])
    mask = smallest_k_mask([key_T], eligible_T=torch.tensor([False, True, True]), k=1, reduce=ALONE)
    assert mask.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="1 of the values to be ordered are NaN"):
        smallest_k_mask([key_T], eligible_T=torch.ones(3, dtype=torch.bool), k=1, reduce=ALONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_of_both_signs_tie(dtype):
    zeros_T = torch.tensor([0.0, -0.0, -0.0], dtype=dtype)
    mask = smallest_k_mask([zeros_T, torch.arange(3)], eligible_T=torch.ones(3, dtype=torch.bool), k=1, reduce=ALONE)
    assert mask.tolist() == [True, False, False]
