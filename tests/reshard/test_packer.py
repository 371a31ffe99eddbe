"""Packing and checksums in one pass: the same elements and checksums as one after the other."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.models.boxes import Box
from megarl.reshard.blocks import Block, BlockKey, Holders, Unit
from megarl.reshard.checksum import ROW_BYTES, Checksums
from megarl.reshard.pack import compute_part_checksums, pack_range
from megarl.reshard.packer import Packer
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.runs import find_runs
from megarl.reshard.seal import Seal, new_secret
from megarl.reshard.tally import Tally

CHECKSUMS = Checksums(Seal(new_secret(), purpose="tests"))

Slices = tuple[slice, ...]


def make_block(*boxes: tuple[str, tuple[int, ...], Slices], dtype: torch.dtype) -> tuple[Block, dict[str, Tensor]]:
    """A block of parts (slices) of parameters (name, shape), which have random bits."""
    units, parameters, total = [], {}, 0
    for name, shape, slices in boxes:
        starts, stops = [cut.start for cut in slices], [cut.stop for cut in slices]
        strides = contiguous_strides(shape)
        offset = sum(start * step for start, step in zip(starts, strides, strict=True))
        box = Box(name, tuple(starts), tuple(stops))
        units.append(Unit(total, box, (Region(name, offset, strides),)))
        if name not in parameters:
            bits = torch.randint(0, 255, (*shape, dtype.itemsize), dtype=torch.uint8)
            parameters[name] = bits.view(dtype).squeeze(-1)
        total += box.num_elements
    return Block(BlockKey(Holders(0), (0,)), total, tuple(units)), parameters


def whole(name: str, *shape: int) -> tuple[str, tuple[int, ...], Slices]:
    return name, shape, tuple(slice(0, length) for length in shape)


VECTORS = (whole("a", 3 * ROW_BYTES + 5), whole("b", 1), whole("c", 2 * ROW_BYTES), whole("d", 700))
"""Of sizes that end within rows and words."""
COLUMNS = (
    ("m", (300, 200), (slice(10, 290), slice(30, 97))),
    ("n", (50, 9000), (slice(0, 50), slice(1, 8999))),  # lines longer than a row of the checksum
    ("e", (5, 7, 6, 4), (slice(1, 4), slice(2, 6), slice(0, 6), slice(1, 4))),
    ("m", (300, 200), (slice(290, 300), slice(0, 200))),
    whole("w", 11, 13),
)


def pack_both_ways(block: Block, parameters: dict[str, Tensor], start: int, stop: int, dtype: torch.dtype) -> None:
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    expected, found = (torch.zeros(stop - start, dtype=dtype) for _ in range(2))
    pack_range(parameters, block, start, stop, out=expected)
    place = block.key, start, stop
    sums = mine.pack(place, found, Tally())
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert sums == compute_part_checksums(expected, mine.parts.of(place), CHECKSUMS)


@pytest.mark.parametrize("boxes", [VECTORS, COLUMNS], ids=["vectors", "columns"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_equals_packing_and_then_computing(boxes: Any, dtype: torch.dtype, data: st.DataObject) -> None:
    """Any range of the block, whatever lines, words and rows it begins and ends in."""
    block, parameters = make_block(*boxes, dtype=dtype)
    start = data.draw(st.integers(0, block.num_elements - 1))
    pack_both_ways(block, parameters, start, data.draw(st.integers(start + 1, block.num_elements)), dtype)
    pack_both_ways(block, parameters, 0, block.num_elements, dtype)


def test_lines_of_a_view_are_found_by_hand() -> None:
    """Rows 1 and 2 of a [4, 6] matrix, columns 2 to 5, in bfloat16; then a whole one; then rows that are whole."""
    boxes = (("m", (4, 6), (slice(1, 3), slice(2, 5))), whole("v", 9), ("k", (3, 5), (slice(1, 3), slice(0, 5))))
    block, parameters = make_block(*boxes, dtype=torch.bfloat16)
    out = torch.zeros(block.num_elements, dtype=torch.bfloat16)
    runs = find_runs(parameters, block, 0, block.num_elements, out=out)
    assert runs is not None
    assert runs.table.tolist() == [[16, 2, 6, 12], [0, 1, 18, 18], [10, 1, 20, 20]]
    addresses = [parameters[name].data_ptr() for name in ("m", "v", "k")]
    assert runs.located()[:, 0].tolist() == [addresses[0] + 16, addresses[1], addresses[2] + 10]


def test_the_present_values_are_packed() -> None:
    """Also from parameters whose memory was exchanged since the last publication."""
    block, parameters = make_block(*COLUMNS, dtype=torch.float32)
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    place = block.key, 0, block.num_elements
    for step in range(3):
        for parameter in parameters.values():
            parameter.data = torch.randn(parameter.shape) if step == 1 else parameter.data.mul_(2.0)
        expected, found = (torch.zeros(block.num_elements) for _ in range(2))
        pack_range(parameters, block, 0, block.num_elements, out=expected)
        assert mine.pack(place, found, Tally()) == compute_part_checksums(expected, mine.parts.of(place), CHECKSUMS)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_elements_that_are_rounded_are_summed_as_they_are_sent() -> None:
    block, parameters = make_block(*COLUMNS, dtype=torch.float32)
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    expected, found = (torch.zeros(block.num_elements, dtype=torch.bfloat16) for _ in range(2))
    pack_range(parameters, block, 0, block.num_elements, out=expected)
    place, tally = (block.key, 0, block.num_elements), Tally()
    assert mine.pack(place, found, tally) == compute_part_checksums(expected, mine.parts.of(place), CHECKSUMS)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
    report = tally.report(1)
    assert report.pack_s > 0 < report.checksum_s


def test_a_message_of_another_length_is_refused() -> None:
    """Before a compiled loop writes beyond it, or reads beyond the parameters."""
    block, parameters = make_block(*VECTORS, dtype=torch.uint8)
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    for wrong in (99, 101):
        with pytest.raises(ValueError, match=f"runs of 100 bytes and parts of 100 for a message of {wrong}"):
            mine.pack((block.key, 0, 100), torch.zeros(wrong, dtype=torch.uint8), Tally())
