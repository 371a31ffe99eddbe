"""Weights that no process holds: read from where they are stored while they are packed.

Invariant: of them, a message and the largest box in it are in memory at once, whatever the model's size.
"""

from collections.abc import Callable, Mapping
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
    for unit, first, last in units_between(block, start, stop):
        for corner, shape in split_run(unit.box.shape, first, last):
            low = tuple(map(add, unit.box.start, corner))
            box = Box(unit.box.tensor, low, tuple(map(add, low, shape)))
            values = weights.read(box)
            if tuple(values.shape) != shape:
                raise ValueError(f"expected shape {shape} for {box}, found {tuple(values.shape)}")
            out[position : position + box.num_elements].view(shape).copy_(values)
            position += box.num_elements
