"""Headers there and back, and what is said of bytes that arrived changed."""

from dataclasses import replace

import pytest
import torch

from megarl.reshard.blocks import BlockKey, Holders
from megarl.reshard.message import (
    DENSE,
    SPARSE,
    Envelope,
    Header,
    compare_checksums,
    header_room,
    make_header,
    name_parts,
    read_header,
)
from megarl.reshard.pack import Part
from megarl.reshard.seal import Seal, new_secret
from megarl.reshard.signals import TransportError

ENVELOPE = Envelope(Seal(new_secret(), purpose="tests"), 3, (BlockKey(Holders(1), (0, 1)), 0, 65))
PARTS = (Part("a.weight", 0, 40), Part("b.weight", 40, 64), Part("c.bias", 64, 65))


@pytest.mark.parametrize(
    "header",
    [
        Header(1, DENSE, 1 << 40, ()),
        Header(123456, SPARSE, 0, (0, 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1)),
    ],
)
def test_header_there_and_back(header: Header) -> None:
    words = make_header(header, ENVELOPE)
    room = header_room(len(header.checksums), torch.device("cpu"))
    assert (words.shape, words.dtype) == (room.shape, room.dtype)
    assert read_header(room.copy_(words), ENVELOPE) == header


@pytest.mark.parametrize(
    "other",
    [
        replace(ENVELOPE, seal=Seal(new_secret(), purpose="tests")),
        replace(ENVELOPE, serial=2),
        replace(ENVELOPE, place=(BlockKey(Holders(1), (0,)), 0, 65)),
        replace(ENVELOPE, place=(BlockKey(Holders(1), (0, 1)), 65, 130)),
    ],
    ids=["of another session", "of an earlier publication", "of another block", "of another part of it"],
)
def test_a_header_from_elsewhere_is_refused(other: Envelope) -> None:
    header = Header(1, DENSE, 260, (5, 6, 7))
    with pytest.raises(TransportError, match="does not carry this session's seal"):
        read_header(make_header(header, other), ENVELOPE)


@pytest.mark.parametrize("word", range(10))
def test_a_changed_header_is_refused(word: int) -> None:
    words = make_header(Header(1, DENSE, 260, (5, 6, 7)), ENVELOPE)
    words[word] ^= 1
    with pytest.raises(TransportError, match="does not carry this session's seal"):
        read_header(words, ENVELOPE)


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
