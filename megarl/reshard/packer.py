"""Packing a place and its checksums, in one pass over its memory.

Where the elements are copied as they are, in host memory, one compiled call copies a row and sums it while it is in the
first-level cache (row_sums.py). On a GPU both are queued on the device in order; where elements are rounded on the way,
torch does that, and a second pass sums.
"""

from collections.abc import Mapping

from torch import Tensor

from megarl.reshard.blocks import Block, BlockKey
from megarl.reshard.checksum import Checksums
from megarl.reshard.pack import PartsTable, byte_bounds, compute_part_checksums, pack_range
from megarl.reshard.plan import Place
from megarl.reshard.row_sums import compile_copy
from megarl.reshard.runs import Runs, find_runs
from megarl.reshard.tally import Tally


class Packer:
    """One policy rank's."""

    def __init__(
        self, parameters: Mapping[str, Tensor], blocks: Mapping[BlockKey, Block], checksums: Checksums
    ) -> None:
        self._parameters, self._blocks, self._checksums = parameters, blocks, checksums
        self.parts = PartsTable(blocks)
        self._runs: dict[Place, Runs | None] = {}
        if not all(parameter.is_cuda for parameter in parameters.values()):
            compile_copy()  # now, and not while engines wait

    def pack(self, place: Place, out: Tensor, tally: Tally) -> list[int]:
        """Fill `out` [elements] with the place's elements; returns their checksums, part by part."""
        key, start, stop = place
        parts = self.parts.of(place)
        with tally.time("pack_s"):
            if place not in self._runs:
                self._runs[place] = find_runs(self._parameters, self._blocks[key], start, stop, out=out)
            if (runs := self._runs[place]) is not None:
                return self._checksums.of_copy(runs.located(), out, byte_bounds(parts, out.itemsize))
            pack_range(self._parameters, self._blocks[key], start, stop, out=out)
        with tally.time("checksum_s"):
            return compute_part_checksums(out, parts, self._checksums)
