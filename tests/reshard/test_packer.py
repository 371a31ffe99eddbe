"""Packing beside checksums: the same elements and checksums as one after the other, in pieces of any size."""

import itertools
import threading

import pytest
import torch
from torch import Tensor

from megarl.models.boxes import Box
from megarl.reshard import packer
from megarl.reshard.blocks import Block, BlockKey, Holders, Unit
from megarl.reshard.checksum import ROW_BYTES, Checksums
from megarl.reshard.pack import compute_part_checksums, pack_range
from megarl.reshard.packer import Packer, cut_pieces
from megarl.reshard.regions import Region
from megarl.reshard.seal import Seal, new_secret
from megarl.reshard.tally import Tally

CHECKSUMS = Checksums(Seal(new_secret(), purpose="tests"))
SIZES = {"a": 3 * ROW_BYTES + 5, "b": 1, "c": 2 * ROW_BYTES, "d": 700}


def make_block() -> tuple[Block, dict[str, Tensor]]:
    """Four tensors, of one byte an element, of sizes that end within rows and words."""
    units, parameters, total = [], {}, 0
    for name, size in SIZES.items():
        units.append(Unit(total, Box(name, (0,), (size,)), (Region(name, 0, (1,)),)))
        parameters[name] = torch.randint(0, 255, (size,), dtype=torch.uint8)
        total += size
    return Block(BlockKey(Holders(0), (0,)), total, tuple(units)), parameters


@pytest.mark.parametrize("piece_bytes", [1, ROW_BYTES, 2 * ROW_BYTES + 9, 1 << 22])
@pytest.mark.parametrize("cut", [(0, 0), (100, 1), (4 * ROW_BYTES, 0)])
def test_equals_packing_and_then_computing(
    piece_bytes: int, cut: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "_PIECE_BYTES", piece_bytes)
    block, parameters = make_block()
    start, stop = cut[0], block.num_elements - cut[1]
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    expected, found = (torch.zeros(stop - start, dtype=torch.uint8) for _ in range(2))
    pack_range(parameters, block, start, stop, out=expected)
    place = block.key, start, stop
    tally = Tally()
    assert mine.pack(place, found, tally) == compute_part_checksums(expected, mine.parts.of(place), CHECKSUMS)
    assert torch.equal(found, expected)
    assert tally.report(1).pack_s > 0
    mine.close()


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("piece_bytes", [1, ROW_BYTES, 5 * ROW_BYTES])
def test_pieces_cover_the_parts_in_order_and_begin_with_a_row(
    itemsize: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "_PIECE_BYTES", piece_bytes)
    block, parameters = make_block()
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    parts = mine.parts.of((block.key, 0, block.num_elements))
    lists = list(cut_pieces(parts, itemsize))
    at = 0
    for piece in (piece for pieces in lists for piece in pieces):
        part = parts[piece.part]
        assert piece.start == at < piece.stop <= part.stop
        assert (piece.start - part.start) * itemsize % ROW_BYTES == 0
        at = piece.stop
    assert at == block.num_elements
    most = max(piece_bytes, ROW_BYTES) + ROW_BYTES
    assert all((pieces[-1].stop - pieces[0].start) * itemsize <= most for pieces in lists)


def test_a_part_that_does_not_end_with_a_row_ends_its_list_or_goes_on_in_it() -> None:
    """By hand: lists of 4 MiB of bytes, of parts of 3 MiB + 1, 2 MiB and 1 byte."""
    mib = 1 << 20
    bounds = [0, 3 * mib + 1, 5 * mib + 1, 5 * mib + 2]
    parts = [packer.Part("t", low, high) for low, high in itertools.pairwise(bounds)]
    row = ROW_BYTES
    second = 3 * mib + 1 + (mib - 1) // row * row
    assert [[tuple(piece) for piece in pieces] for pieces in cut_pieces(parts, 1)] == [
        [(0, 0, 3 * mib + 1), (1, 3 * mib + 1, second)],
        [(1, second, 5 * mib + 1), (2, 5 * mib + 1, 5 * mib + 2)],
    ]


def test_checksums_are_computed_in_one_thread_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which lives as long as the packer."""
    threads = set()
    sums = Checksums.sums

    def seen(self: Checksums, data: Tensor) -> bytes:
        threads.add(threading.current_thread())
        return sums(self, data)

    monkeypatch.setattr(Checksums, "sums", seen)
    block, parameters = make_block()
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    for _ in range(3):
        mine.pack((block.key, 0, block.num_elements), torch.zeros(block.num_elements, dtype=torch.uint8), Tally())
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.is_alive()
    mine.close()
    thread.join(5.0)
    assert not thread.is_alive()


def test_an_error_of_the_other_thread_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Checksums, "sums", broken)
    block, parameters = make_block()
    mine = Packer(parameters, {block.key: block}, CHECKSUMS)
    with pytest.raises(RuntimeError, match="no memory"):
        mine.pack((block.key, 0, block.num_elements), torch.zeros(block.num_elements, dtype=torch.uint8), Tally())
    mine.close()
