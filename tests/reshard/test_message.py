"""Headers there and back, and what is said of bytes that arrived changed."""

import pytest
import torch

from megarl.reshard.message import (
    DENSE,
    SPARSE,
    Header,
    compare_checksums,
    header_room,
    make_header,
    name_parts,
    read_header,
)
from megarl.reshard.pack import Part
from megarl.reshard.signals import TransportError

PARTS = (Part("a.weight", 0, 40), Part("b.weight", 40, 64), Part("c.bias", 64, 65))


@pytest.mark.parametrize(
    "header",
    [
        Header(1, DENSE, 1 << 40, ()),
        Header(123456, SPARSE, 0, (0, 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1)),
    ],
)
def test_header_there_and_back(header: Header) -> None:
    words = make_header(header.version, header.kind, header.num_bytes, header.checksums)
    room = header_room(len(header.checksums), torch.device("cpu"))
    assert (words.shape, words.dtype) == (room.shape, room.dtype)
    assert read_header(room.copy_(words)) == header


def test_names_of_many_tensors_are_cut_short() -> None:
    assert name_parts(PARTS) == "a.weight, b.weight, c.bias"
    assert name_parts([*PARTS, Part("d", 65, 66)]) == "a.weight .. d (4 tensors)"


def test_equal_checksums_pass() -> None:
    compare_checksums(PARTS, (1, 2, 3), [1, 2, 3], sender="policy rank 0")


def test_a_changed_part_is_named_with_its_place_and_sender() -> None:
    with pytest.raises(TransportError) as error:
        compare_checksums(PARTS, (1, 1 << 63, 3), [1, 255, 3], sender="policy rank 0")
    assert str(error.value) == (
        "arrived changed from policy rank 0, by its checksum: b.weight (elements 40 to 64 of the message: sent "
        "8000000000000000, found 00000000000000ff)"
    )


def test_at_most_three_changed_parts_are_named() -> None:
    parts = [Part(name, 0, 1) for name in "abcd"]
    with pytest.raises(TransportError) as error:
        compare_checksums(parts, [1] * 4, [2] * 4, sender="engine 1 worker 0")
    assert str(error.value).count("elements 0 to 1") == 3
    assert "d (" not in str(error.value)
