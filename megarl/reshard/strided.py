"""From a strided view of a whole tensor, copied into a strided view of a parameter, to boxes and their places.

A loader that slices, chunks, reshapes or transposes asks for elements at strides; which rectangular boxes they are, and
where each box's elements go, follows from the strides alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megarl.models.boxes import Box
from megarl.reshard.regions import contiguous_strides

MOST_BOXES = 4096
"""A copy that falls into more boxes than this is not worth describing."""


class NotBoxesError(ValueError):
    """The copied elements are not a manageable number of boxes; the text says why."""


@dataclass(frozen=True, slots=True)
class Axis:
    """`size` elements of the copy, `step` apart along a dimension of the tensor and `stride` apart in the target."""

    size: int
    step: int
    stride: int


def split_copy(
    tensor: str,
    full_shape: Sequence[int],
    *,
    shape: Sequence[int],
    source: tuple[int, Sequence[int]],
    target: tuple[int, Sequence[int]],
) -> Iterator[tuple[Box, int, tuple[int, ...]]]:
    """(box, first element in the target, strides in the target) of a copy of `shape`.

    source, target: (offset, strides per dimension of `shape`), in elements; the source's within the contiguous tensor
    of `full_shape`. Raises NotBoxesError.
    """
    axes = _axes_by_dimension(full_shape, shape, source[1], target[1])
    first = _unravel(source[0], full_shape)
    ranges = [_merge(of_dim) for of_dim in axes]
    loops = [(dim, axis) for dim, (_, outer) in enumerate(ranges) for axis in outer]
    count = 1
    for _, axis in loops:
        count *= axis.size
    if count > MOST_BOXES:
        raise NotBoxesError(f"the copy falls into {count} separate boxes")
    for indexes in itertools.product(*(range(axis.size) for _, axis in loops)):
        start, offset = list(first), target[0]
        for index, (dim, axis) in zip(indexes, loops, strict=True):
            start[dim] += index * axis.step
            offset += index * axis.stride
        sizes = [inner.size for inner, _ in ranges]
        stop = [low + size for low, size in zip(start, sizes, strict=True)]
        if any(high > length for high, length in zip(stop, full_shape, strict=True)):
            raise NotBoxesError("the copied elements run over the end of a dimension")
        yield Box(tensor, tuple(start), tuple(stop)), offset, tuple(inner.stride for inner, _ in ranges)


def _axes_by_dimension(
    full_shape: Sequence[int], shape: Sequence[int], source: Sequence[int], target: Sequence[int]
) -> list[list[Axis]]:
    """The copy's axes longer than 1, by the tensor's dimension they run along, largest step first."""
    whole = contiguous_strides(full_shape)
    axes: list[list[Axis]] = [[] for _ in full_shape]
    for size, from_stride, to_stride in zip(shape, source, target, strict=True):
        if size == 1:
            continue
        dim = next((dim for dim, stride in enumerate(whole) if 0 < stride <= from_stride), None)
        if dim is None or from_stride % whole[dim]:
            raise NotBoxesError("the copy repeats elements or runs across dimensions")
        axes[dim].append(Axis(size, from_stride // whole[dim], to_stride))
    return [sorted(of_dim, key=lambda axis: -axis.step) for of_dim in axes]


def _merge(axes: list[Axis]) -> tuple[Axis, list[Axis]]:
    """(the longest run of neighbouring indices, the axes that repeat it), of the axes along one dimension."""
    inner, rest = Axis(1, 1, 0), list(axes)
    while rest and rest[-1].step == inner.size:
        axis = rest[-1]
        if inner.size > 1 and axis.stride != inner.size * inner.stride:
            break
        inner = Axis(inner.size * axis.size, 1, inner.stride if inner.size > 1 else axis.stride)
        rest.pop()
    return inner, rest


def _unravel(offset: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for stride in contiguous_strides(shape):
        index.append(offset // stride)
        offset %= stride
    return tuple(index)
