"""Whether rectangles cover a tensor exactly once."""

import math
from collections.abc import Iterator, Sequence

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""(offsets, sizes)"""


def coverage_fault(shape: tuple[int, ...], rectangles: Sequence[Rectangle]) -> str | None:
    """What is wrong with rectangles that should cover a tensor of `shape` exactly once; None where they do."""
    for offsets, sizes in rectangles:
        ends = zip(offsets, sizes, shape, strict=False)
        if not len(offsets) == len(sizes) == len(shape) or any(a < 0 or b < 0 or a + b > end for a, b, end in ends):
            return f"a chunk at {list(offsets)} of sizes {list(sizes)} lies outside {list(shape)}"
    for cluster in _clusters([box for box in rectangles if math.prod(box[1])], 0):
        for index, (first, sizes) in enumerate(cluster):
            for second, others in cluster[index + 1 :]:
                if _overlap(first, sizes, second, others):
                    return f"chunks at {list(first)} and {list(second)} overlap"
    covered = sum(math.prod(sizes) for _, sizes in rectangles)
    if covered != math.prod(shape):
        return f"chunks hold {covered} of {math.prod(shape)} elements"
    return None


def _overlap(first: tuple[int, ...], sizes: tuple[int, ...], second: tuple[int, ...], others: tuple[int, ...]) -> bool:
    bounds = zip(first, sizes, second, others, strict=True)
    return all(low < begin + count and begin < low + size for low, size, begin, count in bounds)


def _clusters(boxes: list[Rectangle], axis: int, unsplit: int = 0) -> Iterator[list[Rectangle]]:
    """Sets of rectangles, none of which overlaps one of another set: split by gaps, axis after axis.

    Tensors have a million chunks (layers, ranks, shares); comparing all pairs is no option, and a set here mostly has
    one element.
    """
    if len(boxes) < 2 or unsplit == len(boxes[0][0]):
        yield boxes
        return
    boxes.sort(key=lambda box: box[0][axis])
    runs, end = [[boxes[0]]], boxes[0][0][axis] + boxes[0][1][axis]
    for box in boxes[1:]:
        if box[0][axis] >= end:
            runs.append([])
        runs[-1].append(box)
        end = max(end, box[0][axis] + box[1][axis])
    for run in runs:
        yield from _clusters(run, (axis + 1) % len(run[0][0]), 0 if len(runs) > 1 else unsplit + 1)
