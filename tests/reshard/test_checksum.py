"""The checksum against plain integer arithmetic, and what it must notice."""

import hashlib
import hmac
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.reshard.checksum import ROW_BYTES, Checksums, as_bytes
from megarl.reshard.seal import Seal

SECRET = "1f" * 32
CHECKSUMS = Checksums(Seal(SECRET, purpose="tests"))
ROW = 1 << 10


def seal(*fields: bytes) -> bytes:
    key = hmac.new(bytes.fromhex(SECRET), b"tests", hashlib.sha256).digest()
    message = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return hmac.new(key, message, hashlib.sha256).digest()


@cache
def weights() -> list[int]:
    drawn = hashlib.shake_256(seal(b"weights of the checksum")).digest(2 * 8 * ROW)
    return [int.from_bytes(drawn[at : at + 8], "little") for at in range(0, len(drawn), 8)]


def sums_by_hand(data: bytes) -> bytes:
    """The sums of the rows of whole words, by the module docstring's formula over Python integers."""
    halves = [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, len(data) // 8 * 8, 4)]
    sums = b""
    for start in range(0, len(halves), 2 * ROW):
        total = sum(half * u for half, u in zip(halves[start : start + 2 * ROW], weights(), strict=False))
        sums += (total % 2**64).to_bytes(8, "little")
    return sums


def compiled_sums(checksums: Checksums, data: torch.Tensor) -> bytes:
    (sums,) = checksums._on_cpu.of(data.numpy(), np.array([0, data.numel()]))
    return sums


def by_hand(data: bytes) -> int:
    rest = data[len(data) // 8 * 8 :]
    return int.from_bytes(seal(b"checksum", len(data).to_bytes(8, "little"), sums_by_hand(data) + rest)[:8], "little")


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_equals_the_formula(data: bytes) -> None:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert CHECKSUMS.of(tensor) == by_hand(data)


@pytest.mark.parametrize("rows", [1, 9, 20])
def test_equals_the_formula_over_several_rows(rows: int) -> None:
    tensor = torch.randint(-(2**31), 2**31 - 1, (rows * 2 * ROW + 5,), dtype=torch.int32)
    assert CHECKSUMS.of(tensor) == by_hand(tensor.numpy().tobytes())


@pytest.mark.parametrize("words", [0, 1, ROW - 1, ROW, 3 * ROW + 7])
@pytest.mark.parametrize("extreme", [False, True])
def test_tensor_operations_and_the_compiled_loop_agree(words: int, extreme: bool) -> None:
    """What a GPU computes, here on the CPU; with both halves of every word the least number there is, too."""
    tensor = torch.randint(-(2**63), 2**63 - 1, (words,))
    if extreme:
        tensor.view(torch.int32)[:] = -(2**31)
    data = as_bytes(tensor)
    expected = sums_by_hand(data.numpy().tobytes())
    assert CHECKSUMS._sums_by_operations(data) == expected
    assert compiled_sums(CHECKSUMS, data) == expected


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("length", [0, 7, 8, 8 * ROW + 3])
def test_ranges_begin_and_end_at_any_byte(start: int, length: int) -> None:
    data = torch.randint(0, 255, (9 * ROW,), dtype=torch.uint8)
    piece = data[start : start + length]
    expected = by_hand(piece.numpy().tobytes())
    assert CHECKSUMS.of_parts(data, [0, 0, start, start + length, data.numel()])[2] == expected
    assert CHECKSUMS._seal_sums(length, CHECKSUMS._sums_by_operations(piece)) == expected


def test_parts_have_the_sums_of_each_alone() -> None:
    data = torch.randint(0, 255, (9 * ROW_BYTES,), dtype=torch.uint8)
    bounds = [0, ROW_BYTES, ROW_BYTES, ROW_BYTES + 3, 3 * ROW_BYTES - 1, 4 * ROW_BYTES + 7, 9 * ROW_BYTES]
    alone = [CHECKSUMS.of(data[start:stop]) for start, stop in itertools.pairwise(bounds)]
    assert CHECKSUMS.of_parts(data, bounds) == alone


def test_the_sums_of_one_half_are_spread_as_the_bound_says() -> None:
    """The bound's worst case: a half that changes by 2**31 leaves the sum's low 31 bits and moves the others."""
    base = torch.zeros(1, dtype=torch.int64)
    changed = torch.tensor([-(2**31), 0], dtype=torch.int32).view(torch.int64)
    found = set()
    for number in range(64):
        checksums = Checksums(Seal(f"{number:064x}", purpose="tests"))
        assert compiled_sums(checksums, as_bytes(base)) == bytes(8)
        sums = compiled_sums(checksums, as_bytes(changed))
        assert int.from_bytes(sums, "little") % 2**31 == 0
        found.add(sums)
    assert len(found) == 64


@given(st.integers(0, 999), st.integers(0, 31), st.integers(0, 999))
@settings(deadline=None)
def test_notices_one_bit_and_one_exchange(position: int, bit: int, other: int) -> None:
    words = torch.arange(1000, dtype=torch.int32) * 77777
    expected = CHECKSUMS.of(words)
    flipped = words.clone()
    flipped[position] ^= 1 << bit if bit < 31 else -(2**31)
    assert CHECKSUMS.of(flipped) != expected
    if position != other:
        exchanged = words.clone()
        exchanged[[position, other]] = words[[other, position]]
        assert CHECKSUMS.of(exchanged) != expected


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_notices_the_same_bit_of_two_words(bit: int) -> None:
    """Two signs of bfloat16, bit 63 of two words, cancel in a sum modulo 2**64 with odd weights, whatever these are."""
    words = torch.randint(-(2**62), 2**62, (100,))
    expected = CHECKSUMS.of(words)
    for other in range(1, 100):
        changed = words.clone()
        changed[[0, other]] ^= torch.tensor(1 << bit if bit < 63 else -(2**63))
        assert CHECKSUMS.of(changed) != expected


def test_notices_changes_of_two_rows_that_cancel() -> None:
    """What is added to a word of one row and taken from the same word of the next."""
    words = torch.zeros(2, ROW, dtype=torch.int64)
    words[0, 5], words[1, 5] = 7, -7
    assert CHECKSUMS.of(words) != CHECKSUMS.of(torch.zeros_like(words))


def test_notices_length_of_zeros() -> None:
    assert len({CHECKSUMS.of(torch.zeros(n)) for n in range(5)}) == 5


def test_another_secret_gives_another_checksum() -> None:
    other = Checksums(Seal("2f" * 32, purpose="tests"))
    assert other.of(torch.zeros(9)) != CHECKSUMS.of(torch.zeros(9))
    assert not torch.equal(
        other._weights_on(torch.device("cpu")), CHECKSUMS._weights_on(torch.device("cpu"))
    )  # the sums too, not only their seal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_depends_on_values_not_on_memory_layout(dtype: torch.dtype) -> None:
    tensor = (torch.randn(6, 7) * 3).to(dtype)
    assert CHECKSUMS.of(tensor.t().contiguous().t()) == CHECKSUMS.of(tensor)
    shifted = torch.cat([torch.zeros(1, dtype=dtype), tensor.reshape(-1)])[1:]  # not aligned to eight bytes
    assert CHECKSUMS.of(shifted) == CHECKSUMS.of(tensor)
