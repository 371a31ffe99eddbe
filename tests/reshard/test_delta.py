"""Coded changes: exact whatever the bits, as small as promised, and refused when they are no coding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.reshard.delta import apply_changes, encode_changes, encoded_bytes_at_least, find_changes

DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float64)


def bits(tensor: Tensor) -> Tensor:
    """[elements, bytes of each]."""
    return tensor.view(torch.uint8).view(tensor.numel(), tensor.itemsize)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Old and new elements; the new ones differ at random places in random bits, NaN payloads and signs of zero too."""
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(0, 1200))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    old = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator).view(dtype)
    new = old.clone()
    chosen = torch.rand(size, generator=generator) < draw(st.sampled_from((0.0, 0.002, 0.03, 0.5, 1.0)))
    noise = torch.randint(0, 256, (size, dtype.itemsize), dtype=torch.uint8, generator=generator)
    bits(new)[chosen] = noise[chosen]
    return old, new


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_round_trip(pair: tuple[Tensor, Tensor]) -> None:
    old, new = pair
    positions = find_changes(new, old)
    assert torch.equal(positions, (bits(new) != bits(old)).any(1).nonzero().view(-1))
    encoded = encode_changes(new, positions)
    assert encoded.dtype == torch.uint8
    assert encoded.numel() >= encoded_bytes_at_least(positions.numel(), new.itemsize)
    assert apply_changes(old, encoded) == positions.numel()
    assert torch.equal(bits(old), bits(new))


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765])
@pytest.mark.parametrize("first", [0, 255])
def test_every_gap(gap: int, first: int) -> None:
    """A gap takes a byte, and one more for every whole 255 in it."""
    old = torch.zeros(2000, dtype=torch.bfloat16)
    new = old.clone()
    new[[first, first + gap + 1]] = torch.tensor([1.5, 2.5], dtype=torch.bfloat16)
    encoded = encode_changes(new, find_changes(new, old))
    assert encoded.numel() == 8 + (1 + first // 255) + (1 + gap // 255) + 2 * 2
    assert apply_changes(old, encoded) == 2
    assert torch.equal(old, new)


def test_the_bytes_are_as_documented() -> None:
    new = torch.tensor([0, 7, 0, 0, 9], dtype=torch.int8)
    encoded = encode_changes(new, torch.tensor([1, 4]))
    assert encoded.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 7, 9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compares_bits_not_values(dtype: torch.dtype) -> None:
    old = torch.tensor([0.0, -0.0, float("nan"), float("nan"), 1.0], dtype=dtype)
    new = torch.tensor([-0.0, -0.0, float("nan"), float("nan"), 1.0], dtype=dtype)
    bits(new)[3, 0] ^= 1  # the same kind of number, another payload
    assert find_changes(new, old).tolist() == [0, 3]
    apply_changes(old, encode_changes(new, torch.tensor([0, 3])))
    assert torch.equal(bits(old), bits(new))


def test_no_change_is_a_count_of_nothing() -> None:
    elements = torch.randn(300)
    encoded = encode_changes(elements, find_changes(elements, elements.clone()))
    assert encoded.tolist() == [0] * 8
    before = elements.clone()
    assert apply_changes(elements, encoded) == 0
    assert torch.equal(elements, before)


def test_all_changed() -> None:
    old, new = torch.zeros(300), torch.arange(1.0, 301.0)
    encoded = encode_changes(new, find_changes(new, old))
    assert encoded.numel() == encoded_bytes_at_least(300, 4) == 8 + 300 * 5
    assert apply_changes(old, encoded) == 300
    assert torch.equal(old, new)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_three_bytes_a_changed_weight(share: float) -> None:
    """At the share of bfloat16 weights that an update changes; one gap in thirteen (at 1 per cent) needs a second
    byte, hence a little more than 3."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(1 << 18, generator=generator).bfloat16()
    new = old.clone()
    chosen = torch.rand(old.shape, generator=generator) < share
    bits(new)[chosen, 0] ^= 1
    encoded = encode_changes(new, find_changes(new, old))
    per_change = encoded.numel() / int(chosen.sum())
    assert 3.0 <= per_change < 3.1
    assert encoded.numel() < 0.05 * old.nbytes


def words(count: int, *rest: int) -> Tensor:
    """An encoding by hand."""
    return torch.cat([torch.tensor([count]).view(torch.uint8), torch.tensor(rest, dtype=torch.uint8)])


@pytest.mark.parametrize(
    "encoded",
    {
        "nothing at all": torch.empty(0, dtype=torch.uint8),
        "no full count": torch.zeros(7, dtype=torch.uint8),
        "a negative count": words(-1),
        "a count beyond the end": words(3, 0, 0),
        "a huge count": words(1 << 62, 0, 0, 0),
        "a value too few": words(2, 0, 0, 1, 1),
        "a value too many": words(1, 0, 1, 1, 1, 1),
        "a torn value": words(1, 0, 1, 1, 1),
        "values without a position": words(0, 1, 1),
        "a position without a value": words(1, 0),
        "a gap without an end": words(2, 0, 255, 1, 1),
        "only half a gap": words(1, 255),
        "a position past the end": words(2, 0, 9, 1, 1, 1, 1),
        "one past the end": words(1, 10, 1, 1),
    }.items(),
    ids=lambda item: item[0],
)
def test_malformed_encodings_write_nothing(encoded: tuple[str, Tensor]) -> None:
    elements = torch.arange(10).bfloat16()
    with pytest.raises(ValueError, match=r"no encoded changes|do not fit"):
        apply_changes(elements, encoded[1])
    assert torch.equal(elements, torch.arange(10).bfloat16())


def test_the_last_element_can_change() -> None:
    elements = torch.arange(10).bfloat16()
    assert apply_changes(elements, words(1, 9, 0, 0)) == 1
    assert elements.tolist() == [*range(9), 0]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.sampled_from((torch.uint8, torch.bfloat16, torch.float32)))
def test_any_bytes_are_taken_or_refused(data: bytes, dtype: torch.dtype) -> None:
    """The count is made plausible, or nearly nothing would pass it."""
    encoded = torch.tensor(list(data), dtype=torch.uint8)
    if len(data) >= 9:
        encoded[:8] = torch.tensor([data[8] % len(data)]).view(torch.uint8)
    elements = torch.zeros(50, dtype=dtype)
    try:
        apply_changes(elements, encoded)
    except ValueError:
        assert not bits(elements).any()
