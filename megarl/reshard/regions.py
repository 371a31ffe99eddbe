"""Where a box's elements lie in memory, and which memory a run of a box's elements is.

Invariants: a region has one stride per dimension of its box; the elements of a box are counted in row-major order,
which is their order on the wire, whatever their order in either parameter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from megarl.models.boxes import Box, ParameterEntry

if TYPE_CHECKING:  # planning needs no torch, and `megarl plan` should not wait for it
    from torch import Tensor


class Region(NamedTuple):
    """Strided place of a box in a parameter: element `offset` of its first, `strides` elements between neighbours."""

    parameter: str
    offset: int
    strides: tuple[int, ...]


class Placed(NamedTuple):
    """A box and where it lies."""

    box: Box
    region: Region


def parameter_key(chunk: int, name: str) -> str:
    """One name for a parameter of a rank's virtual-pipeline chunk."""
    return f"{chunk}:{name}"


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def place_pieces(entry: ParameterEntry) -> Iterator[Placed]:
    """The pieces of a Megatron parameter, which is contiguous, as placed boxes."""
    strides, key = contiguous_strides(entry.shape), parameter_key(entry.chunk, entry.name)
    for piece in entry.pieces:
        yield Placed(piece.box, Region(key, _dot(piece.start, strides), strides))


def intersect(left: Box, right: Box) -> Box | None:
    """The common elements of two boxes of one tensor, or None."""
    start = tuple(map(max, left.start, right.start))
    stop = tuple(map(min, left.stop, right.stop))
    if any(low >= high for low, high in zip(start, stop, strict=True)):
        return None
    return Box(left.tensor, start, stop)


def narrow(placed: Placed, box: Box) -> Region:
    """The region of `box`, which lies inside the placed one."""
    region = placed.region
    corner = [low - first for low, first in zip(box.start, placed.box.start, strict=True)]
    return Region(region.parameter, region.offset + _dot(corner, region.strides), region.strides)


def split_run(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Elements [start, stop) of a box of this shape as sub-boxes (corner, shape), in order.

    Whole rows go together: a run is at most one ragged piece per dimension at either end and one of whole rows.
    """
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        yield from _in_row(shape, last, start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from _in_row(shape, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])
    if last * row < stop:
        yield from _in_row(shape, last, 0, stop - last * row)


def _in_row(
    shape: Sequence[int], index: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for corner, part in split_run(shape[1:], start, stop):
        yield (index, *corner), (1, *part)


def view_region(memory: "Tensor", region: Region, corner: Sequence[int], shape: Sequence[int]) -> "Tensor":
    """The sub-box at `corner` of the region's box as a view of the parameter `memory`."""
    offset = int(memory.storage_offset()) + region.offset + _dot(corner, region.strides)
    return memory.as_strided(tuple(shape), region.strides, offset)


def _dot(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))
