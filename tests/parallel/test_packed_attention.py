"""Attention over packed sequences against a plain float64 one, sequence by sequence: values and gradients."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from megarl.parallel import packed_attention
from megarl.parallel.packed_attention import BLOCK_BYTES, LEAST_FILLED, LONGEST_BATCHED, Plan, attend_packed

HEADS = {"one key for all": (4, 1), "grouped": (9, 3), "own keys": (6, 6), "one head": (1, 1)}
LENGTHS = {
    "ragged": [5, 1, 17, 16, 2, 40, 1, 33, 12, 12],
    "one token": [1],
    "one sequence": [23],
    "equal": [8] * 7,
    "long among short": [3, LONGEST_BATCHED + 1, 1, 9, LONGEST_BATCHED + 30, 7],
    "long alone": [LONGEST_BATCHED + 5, LONGEST_BATCHED + 2],
    "longest batched": [LONGEST_BATCHED, LONGEST_BATCHED - 1, 2],
}
SIZE = 16


def make_inputs(lengths: list[int], heads: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of the result; key and value as slices of a wider tensor."""
    torch.manual_seed(len(lengths) + sum(heads))
    total, (num, groups) = sum(lengths), heads
    query, grad = torch.randn(total, num, SIZE), torch.randn(total, num, SIZE)
    both = torch.randn(total, groups, 2 * SIZE).to(dtype)
    return [query.to(dtype), both[..., :SIZE], both[..., SIZE:], grad.to(dtype)]


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def attend(inputs: list[Tensor], lengths: list[int]) -> list[Tensor]:
    """The result and the gradients of query, key and value."""
    *operands, grad = inputs
    leaves = [operand.detach().requires_grad_() for operand in operands]
    out = attend_packed(*leaves, tuple(lengths), scale=0.3)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def attend_plainly(inputs: list[Tensor], lengths: list[int]) -> list[Tensor]:
    """The same in float64, with the formula written out for each sequence and head."""
    *operands, grad = (tensor.double() for tensor in inputs)
    leaves = [operand.detach().requires_grad_() for operand in operands]
    query, key, value = leaves
    shared = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    for start, stop in itertools.pairwise(bounds_of(lengths).tolist()):
        later = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        for head in range(query.shape[1]):
            scores = 0.3 * query[start:stop, head] @ key[start:stop, head // shared].T
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            out[start:stop, head] = weights @ value[start:stop, head // shared]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_values_and_gradients(lengths: list[int], heads: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(lengths, heads, dtype)
    batched = torch.cat([torch.full((length,), length <= LONGEST_BATCHED) for length in lengths])
    for got, want in zip(attend(inputs, lengths), attend_plainly(inputs, lengths), strict=True):
        assert got.dtype == dtype
        difference = (got.double() - want).abs()
        if dtype == torch.bfloat16:
            # Batched products are rounded once, to 8 bits; the kernel of long sequences rounds in between as well.
            assert (difference[batched] <= 2**-8 * want[batched].abs() + 1e-5).all()
            assert (difference <= 0.03 * (1 + want.abs())).all()
        else:
            assert difference.max() < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_a_sequence_does_not_depend_on_the_others(heads: tuple[int, int]) -> None:
    lengths = LENGTHS["ragged"]
    inputs = make_inputs(lengths, heads, torch.float32)
    together = attend(inputs, lengths)
    for start, stop in itertools.pairwise(bounds_of(lengths).tolist()):
        alone = attend([tensor[start:stop] for tensor in inputs], [stop - start])
        for of_all, of_one in zip(together, alone, strict=True):
            assert (of_all[start:stop] - of_one).abs().max() < 2e-6


def test_a_sequence_that_is_not_finite_leaves_the_others_alone() -> None:
    lengths = [6, 5, 6, 4]
    inputs = make_inputs(lengths, (4, 2), torch.float32)
    expected = attend(inputs, lengths)
    for tensor in inputs[:3]:
        tensor[6:11] = torch.nan
    for got, want in zip(attend(inputs, lengths), expected, strict=True):
        assert got[6:11].isnan().all()
        assert torch.equal(got[:6], want[:6])
        assert torch.equal(got[11:], want[11:])


def test_gradients_are_only_of_what_asks_for_them() -> None:
    query, key, value, grad = make_inputs([4, 7], (4, 2), torch.float32)
    query.requires_grad_()
    attend_packed(query, key, value, (4, 7), scale=0.3).backward(grad)
    assert torch.equal(query.grad, attend([query.detach(), key, value, grad], [4, 7])[1])
    with torch.no_grad():
        assert not attend_packed(query, key, value, (4, 7), scale=0.3).requires_grad


def test_it_runs_where_the_operands_are_and_reads_nothing_back() -> None:
    """On torch's device without memory, from which nothing can be read."""
    lengths = (10, LONGEST_BATCHED + 1, 10, 7)
    shapes = ((4, SIZE), (2, SIZE), (2, SIZE))
    operands = [torch.randn(sum(lengths), *shape, device="meta", requires_grad=True) for shape in shapes]
    out = attend_packed(*operands, lengths, scale=0.3)
    out.sum().backward()
    assert out.is_meta
    assert all(operand.grad is not None and operand.grad.is_meta for operand in operands)
    plan = packed_attention._plan(lengths, 4, torch.device("meta"))
    assert all(index.is_meta for block in plan.blocks for index in (block.row_BL, block.kept_K))


@pytest.mark.parametrize("num_heads", [1, 9, 64])
def test_memory_is_bounded_and_no_row_is_left_out(num_heads: int) -> None:
    draw = random.Random(num_heads)
    for highest in (3, 60, LONGEST_BATCHED, 3 * LONGEST_BATCHED):
        lengths = [draw.randint(1, highest) for _ in range(300)]
        plan: Plan = packed_attention._plan(tuple(lengths), num_heads, torch.device("cpu"))
        rows = [row for part in plan.long for row in range(part.start, part.stop)]
        for block in plan.blocks:
            kept = block.row_BL[block.kept_K].tolist()
            rows += kept
            assert block.longest <= LONGEST_BATCHED
            assert block.size == 1 or 4 * block.size * num_heads * block.longest**2 <= BLOCK_BYTES
            assert len(kept) >= LEAST_FILLED * len(block.row_BL)
        assert sorted(rows) == list(range(sum(lengths)))
        assert all(part.stop - part.start > LONGEST_BATCHED for part in plan.long)
        # Blocks are few: what is similar in length is together, as far as memory allows.
        assert len(plan.blocks) <= 20 + sum(4 * num_heads * length**2 for length in lengths) / (BLOCK_BYTES / 4)
