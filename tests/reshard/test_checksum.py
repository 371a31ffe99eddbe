"""The checksum against plain integer arithmetic, and what it must notice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megarl.reshard import checksum as module
from megarl.reshard.checksum import compute_checksum


def by_hand(data: bytes) -> int:
    """The module docstring's formula over Python integers."""
    row, whole = 1 << 16, len(data) // 8
    words = [int.from_bytes(data[8 * i : 8 * i + 8], "little", signed=True) for i in range(whole)]
    weights = [2 * (((j + 1) * 0x2545F491) % 2**31) + 1 for j in range(min(row, whole))]
    sums = [
        sum(x * w for x, w in zip(words[start : start + row], weights, strict=False)) for start in range(0, whole, row)
    ]
    if len(data) % 8:
        sums.append(int.from_bytes(data[8 * whole :], "little"))
    total = 0
    for row_sum in [*sums, len(data)]:
        total = (total * 0x9E3779B97F4A7C15 + row_sum) % 2**64
    return total


@given(st.binary(max_size=200))
def test_equals_the_formula(data: bytes) -> None:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert compute_checksum(tensor) == by_hand(data)


def test_equals_the_formula_over_several_rows() -> None:
    tensor = torch.randint(-(2**31), 2**31 - 1, (3 * (1 << 17) + 5,), dtype=torch.int32)
    assert compute_checksum(tensor) == by_hand(tensor.numpy().tobytes())


def test_weights_are_distinct_and_odd() -> None:
    weights = module._row_weights(torch.device("cpu"))
    assert weights.unique().numel() == weights.numel()
    assert bool((weights % 2 == 1).all())
    assert 0 < int(weights.min()) < int(weights.max()) < 2**32


@given(st.integers(0, 999), st.integers(0, 31), st.integers(0, 999))
def test_notices_one_bit_and_one_exchange(position: int, bit: int, other: int) -> None:
    words = torch.arange(1000, dtype=torch.int32) * 77777
    expected = compute_checksum(words)
    flipped = words.clone()
    flipped[position] ^= 1 << bit if bit < 31 else -(2**31)
    assert compute_checksum(flipped) != expected
    if position != other:
        exchanged = words.clone()
        exchanged[[position, other]] = words[[other, position]]
        assert compute_checksum(exchanged) != expected


def test_notices_length_of_zeros() -> None:
    assert len({compute_checksum(torch.zeros(n)) for n in range(5)}) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_depends_on_values_not_on_memory_layout(dtype: torch.dtype) -> None:
    tensor = (torch.randn(6, 7) * 3).to(dtype)
    assert compute_checksum(tensor.t().contiguous().t()) == compute_checksum(tensor)
    shifted = torch.cat([torch.zeros(1, dtype=dtype), tensor.reshape(-1)])[1:]  # not aligned to eight bytes
    assert compute_checksum(shifted) == compute_checksum(tensor)
