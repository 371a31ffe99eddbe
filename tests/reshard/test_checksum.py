"""The checksum against plain integer arithmetic, and what it must notice."""

import hashlib
import hmac
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megarl.reshard.checksum import Checksums
from megarl.reshard.seal import Seal

SECRET = "1f" * 32
CHECKSUMS = Checksums(Seal(SECRET, purpose="tests"))
ROW = 1 << 13


def seal(*fields: bytes) -> bytes:
    key = hmac.new(bytes.fromhex(SECRET), b"tests", hashlib.sha256).digest()
    message = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return hmac.new(key, message, hashlib.sha256).digest()


@cache
def weights() -> tuple[list[int], list[int]]:
    drawn = hashlib.shake_256(seal(b"weights of the checksum")).digest(2 * 8 * ROW)
    numbers = [int.from_bytes(drawn[at : at + 8], "little") for at in range(0, len(drawn), 8)]
    return numbers[:ROW], numbers[ROW:]


def by_hand(data: bytes) -> int:
    """The module docstring's formula over Python integers."""
    low, high = weights()
    whole = len(data) // 8
    words = [int.from_bytes(data[8 * i : 8 * i + 8], "little", signed=True) for i in range(whole)]
    sums = b""
    for start in range(0, whole, ROW):
        row = words[start : start + ROW]
        for total in (
            sum(x * w for x, w in zip(row, low, strict=False)),
            sum((x >> 32) * v for x, v in zip(row, high, strict=False)),
        ):
            sums += (total % 2**64).to_bytes(8, "little")
    if len(data) % 8:
        sums += data[8 * whole :].ljust(8, b"\0")
    return int.from_bytes(seal(b"checksum", len(data).to_bytes(8, "little"), sums)[:8], "little")


@given(st.binary(max_size=200))
def test_equals_the_formula(data: bytes) -> None:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert CHECKSUMS.of(tensor) == by_hand(data)


@pytest.mark.parametrize("rows", [1, 9, 20])
def test_equals_the_formula_over_several_rows(rows: int) -> None:
    tensor = torch.randint(-(2**31), 2**31 - 1, (rows * 2 * ROW + 5,), dtype=torch.int32)
    assert CHECKSUMS.of(tensor) == by_hand(tensor.numpy().tobytes())


@given(st.integers(0, 999), st.integers(0, 31), st.integers(0, 999))
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
