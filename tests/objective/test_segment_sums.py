"""Sums over responses: exact, differentiable, and the same in whatever order they are added."""

import math

import pytest
import torch
from torch import Tensor

from megarl.objective.segment_sums import segment_prefix_sum, segment_sum

SEGMENTS = 5


def make_values(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values of very different sizes that cancel; response 3 has no tokens."""
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(-30, 30, (4000,), generator=generator).double()
    values = torch.randn(4000, generator=generator, dtype=torch.float64) * torch.exp2(size)
    segment = torch.randint(0, SEGMENTS, (4000,), generator=generator)
    return values.to(dtype), torch.where(segment == 3, 4, segment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_the_tokens_is_not_felt(dtype: torch.dtype) -> None:
    values, segment = make_values(dtype)
    expected = segment_sum(values, segment, SEGMENTS)
    added = []
    for seed in range(20):
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(segment_sum(values[order], segment[order], SEGMENTS), expected)
        added.append(values.new_zeros(SEGMENTS).index_add(0, segment[order], values[order]))
    # What it stands for feels it.
    assert not all(torch.equal(added[0], other) for other in added)


def test_a_response_does_not_feel_the_others() -> None:
    values, segment = make_values(torch.float64)
    whole = segment_sum(values, segment, SEGMENTS)
    for index in range(SEGMENTS):
        alone = values[segment == index]
        assert segment_sum(alone, torch.zeros(len(alone), dtype=torch.int64), 1).item() == whole[index].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_exact_sum_rounded(dtype: torch.dtype) -> None:
    values, segment = make_values(dtype)
    found = segment_sum(values, segment, SEGMENTS)
    assert found.dtype == dtype
    for index in range(SEGMENTS):
        mine = values[segment == index].tolist()
        # 2^-61 of the largest for each value, and a rounding of the sum.
        limit = len(mine) * max(map(abs, mine), default=0.0) * 2.0**-61
        rounding = abs(math.fsum(mine)) * torch.finfo(dtype).eps
        assert found[index].item() == pytest.approx(math.fsum(mine), abs=limit + rounding)
    assert found[3].item() == 0.0


def test_values_that_are_no_numbers() -> None:
    values = torch.tensor([1.0, math.inf, 2.0, -math.inf, math.inf, -math.inf, math.nan, 3.0])
    segment = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
    found = segment_sum(values, segment, SEGMENTS).tolist()
    assert found[:2] == [math.inf, -math.inf]
    assert [math.isnan(value) for value in found] == [False, False, True, True, False]
    assert found[4] == 3.0


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e300, 0.0])
def test_the_ends_of_the_range(size: float) -> None:
    found = segment_sum(torch.tensor([size, 2 * size], dtype=torch.float64), torch.tensor([0, 0]), 1)
    assert found.item() == pytest.approx(
        0.0 if size < 1e-290 else 3 * size, rel=1e-15, abs=1e-289 if size < 1e-290 else 0
    )


def test_gradients_and_no_tokens() -> None:
    values = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    out = segment_sum(values, torch.tensor([1, 0, 1]), 2)
    (out * torch.tensor([3.0, 5.0])).sum().backward()
    assert out.tolist() == [-1.0, 2.5]
    assert values.grad is not None
    assert values.grad.tolist() == [5.0, 3.0, 5.0]
    assert segment_sum(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [0.0, 0.0]


def test_prefix_sums_by_hand() -> None:
    values = torch.tensor([1.0, -3.0, 0.5, 2.0, 2.0, -8.0], dtype=torch.float64, requires_grad=True)
    segment = torch.tensor([0, 0, 0, 2, 4, 4])
    sums = segment_prefix_sum(values, segment, SEGMENTS)
    assert sums.tolist() == [1.0, -2.0, -1.5, 2.0, 2.0, -6.0]
    assert not sums.requires_grad
    assert segment_prefix_sum(values[:0], segment[:0], SEGMENTS).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prefix_sums_are_rounded_once_and_feel_no_other_response(dtype: torch.dtype) -> None:
    values, segment = make_values(dtype)
    order = segment.argsort(stable=True)
    values, segment = values[order], segment[order]
    whole = segment_prefix_sum(values, segment, SEGMENTS)
    for index in range(SEGMENTS):
        alone = values[segment == index]
        assert torch.equal(
            segment_prefix_sum(alone, torch.zeros(len(alone), dtype=torch.int64), 1), whole[segment == index]
        )
        largest = alone.abs().max().item() if len(alone) else 0.0
        exact = [math.fsum(alone[: at + 1].tolist()) for at in range(0, len(alone), 97)]
        rounding = 2.0**-50 if dtype == torch.float64 else 2.0**-20
        assert whole[segment == index][::97].tolist() == pytest.approx(exact, rel=rounding, abs=largest * 2.0**-45)


def test_prefix_sums_of_what_is_not_finite() -> None:
    values = torch.tensor([1.0, math.inf, 1.0, 2.0])
    sums = segment_prefix_sum(values, torch.tensor([0, 0, 1, 1]), 2)
    assert sums[:2].isnan().all()
    assert sums[2:].tolist() == [1.0, 3.0]
