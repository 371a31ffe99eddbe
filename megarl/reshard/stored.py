"""Weights that no process holds: read from where they are stored while they are packed.

Invariant: of them, a message and a few of its rows are in memory at once, whatever the model's size.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import add

from torch import Tensor

from megarl.models.boxes import Box
from megarl.reshard.blocks import Block, BlockKey, units_between
from megarl.reshard.checksum import Checksums
from megarl.reshard.pack import PartsTable, compute_part_checksums
from megarl.reshard.plan import Place
from megarl.reshard.regions import split_run
from megarl.reshard.row_sums import compile_sums
from megarl.reshard.tally import Tally

_READ_ELEMENTS = 2 << 20
"""Read at a time, unless a row has more."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """All tensors of a checkpoint, in the place of a policy rank's parameters."""

    read: Callable[[Box], Tensor]
    """A tensor of the box's shape in host memory, in whatever dtype is stored."""


class StoredPacker:
    """A packer (see channel.Packs) that asks for every box anew, in every publication."""

    def __init__(self, weights: StoredWeights, blocks: Mapping[BlockKey, Block], checksums: Checksums) -> None:
        self._weights, self._blocks, self._checksums = weights, blocks, checksums
        self.parts = PartsTable(blocks)
        compile_sums()  # now, and not while engines wait

    def pack(self, place: Place, out: Tensor, tally: Tally) -> list[int]:
        """Fill `out` [elements] with the place's elements, rounded to its dtype, once; returns their checksums."""
        key, start, stop = place
        with tally.time("pack_s"):
            read_range(self._weights, self._blocks[key], start, stop, out=out)
        with tally.time("checksum_s"):
            return compute_part_checksums(out, self.parts.of(place), self._checksums)


def read_range(weights: StoredWeights, block: Block, start: int, stop: int, *, out: Tensor) -> None:
    """The block's elements [start, stop) into `out` [stop - start]. Where its units lie in a rank's parameters is not
    looked at: their boxes are named by the checkpoint's own tensors.

    Raises ValueError where what was read has not its box's shape: copy_ would broadcast it silently.
    """
    position = 0
    for box in _boxes_between(block, start, stop):
        values = weights.read(box)
        if tuple(values.shape) != box.shape:
            raise ValueError(f"expected shape {box.shape} for {box}, found {tuple(values.shape)}")
        out[position : position + box.num_elements].view(box.shape).copy_(values)
        position += box.num_elements


def _boxes_between(block: Block, start: int, stop: int) -> Iterator[Box]:
    """The block's elements [start, stop) in order, as boxes of a few rows."""
    for unit, first, last in units_between(block, start, stop):
        for corner, shape in split_run(unit.box.shape, first, last):
            rows = max(1, _READ_ELEMENTS // math.prod(shape[1:]))
            low = tuple(map(add, unit.box.start, corner))
            for row in range(0, shape[0], rows):
                sizes = (min(rows, shape[0] - row), *shape[1:])
                begin = (low[0] + row, *low[1:])
                yield Box(unit.box.tensor, begin, tuple(map(add, begin, sizes)))
