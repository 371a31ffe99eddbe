"""Packing a place and its checksums, one beside the other.

A place is packed in pieces of some megabytes; while the next is packed, another thread computes the sums of the last,
which is in the cache still. Both release Python's lock for all of their work on memory. On a GPU both are queued on
the device in order.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

from megarl.reshard.blocks import Block, BlockKey
from megarl.reshard.checksum import ROW_BYTES, Checksums, as_bytes
from megarl.reshard.pack import Part, PartsTable, pack_range
from megarl.reshard.plan import Place
from megarl.reshard.tally import Tally

_PIECE_BYTES = 1 << 22


class Piece(NamedTuple):
    """Elements [start, stop) of a message, of one part of it; rows of the checksum, unless the part ends in it."""

    part: int
    start: int
    stop: int


class Packer:
    """One policy rank's."""

    def __init__(
        self, parameters: Mapping[str, Tensor], blocks: Mapping[BlockKey, Block], checksums: Checksums
    ) -> None:
        self._parameters, self._blocks, self._checksums = parameters, blocks, checksums
        self.parts = PartsTable(blocks)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="megarl-checksums")

    def pack(self, place: Place, out: Tensor, tally: Tally) -> list[int]:
        """Fill `out` [elements] with the place's elements; returns their checksums, part by part."""
        key, first, _ = place
        parts, data = self.parts.of(place), as_bytes(out)
        lists = list(cut_pieces(parts, out.itemsize))
        found: list[Future[list[bytes]]] = []
        with tally.time("pack_s"):
            for pieces in lists:
                start, stop = pieces[0].start, pieces[-1].stop
                pack_range(self._parameters, self._blocks[key], first + start, first + stop, out=out[start:stop])
                if not out.is_cuda:
                    found.append(self._beside.submit(self._sums, data, pieces, out.itemsize))
        with tally.time("checksum_s"):
            if out.is_cuda:
                size = out.itemsize
                return self._checksums.of_ranges(out, ((part.start * size, part.stop * size) for part in parts))
            sums = [bytearray() for _ in parts]
            for pieces, future in zip(lists, found, strict=True):
                for piece, of_piece in zip(pieces, future.result(), strict=True):
                    sums[piece.part] += of_piece
            return [
                self._checksums.seal((part.stop - part.start) * out.itemsize, bytes(of_part))
                for part, of_part in zip(parts, sums, strict=True)
            ]

    def _sums(self, data: Tensor, pieces: Sequence[Piece], size: int) -> list[bytes]:
        return [self._checksums.sums(data[piece.start * size : piece.stop * size]) for piece in pieces]

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._beside.shutdown(wait=False, cancel_futures=True)


def cut_pieces(parts: Sequence[Part], itemsize: int) -> Iterator[list[Piece]]:
    """The pieces of all parts in order, in lists of about `_PIECE_BYTES`."""
    most, rows = _PIECE_BYTES // itemsize, ROW_BYTES // itemsize
    pieces: list[Piece] = []
    room = most
    for number, part in enumerate(parts):
        start = part.start
        while start < part.stop:
            whole = max(room // rows * rows, rows)
            stop = min(part.stop, start + whole)
            pieces.append(Piece(number, start, stop))
            room -= stop - start
            start = stop
            if room < rows:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces
