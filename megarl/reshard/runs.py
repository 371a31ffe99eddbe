"""Where a place's elements lie, as runs of bytes that a compiled loop can copy.

A run is lines of equally many bytes at equal distances: a whole parameter is one line, some columns of a matrix are a
line a row. Runs are found once a place; a publication only asks its parameters for their addresses.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from megarl.reshard.blocks import Block
from megarl.reshard.pack import views_between
from megarl.reshard.row_sums import Numbers


@dataclass(frozen=True, slots=True)
class Runs:
    """Of one place, in the order of its elements."""

    parameters: tuple[Tensor, ...]
    """Whose memory they are."""
    owners: Numbers
    """[n]: each run's, as an index into the parameters."""
    table: Numbers
    """[n, 4]: bytes from the parameter's first, lines, bytes of a line, bytes from line to line."""

    def located(self) -> Numbers:
        """The table, with addresses."""
        table = self.table.copy()
        table[:, 0] += np.array([parameter.data_ptr() for parameter in self.parameters])[self.owners]
        return table


def find_runs(parameters: Mapping[str, Tensor], block: Block, start: int, stop: int, *, out: Tensor) -> Runs | None:
    """The block's elements [start, stop); None where they are not `out`'s bytes as they are: of another dtype, which
    wants rounding, or not in host memory."""
    numbers: dict[str, int] = {}
    owners: list[int] = []
    rows: list[tuple[int, ...]] = []
    for name, view in views_between(parameters, block, start, stop):
        if view.dtype != out.dtype or view.is_cuda or out.is_cuda:
            return None
        first = view.data_ptr() - parameters[name].data_ptr()
        lines = [(first + offset, *rest) for offset, *rest in _lines(view)]
        owners += [numbers.setdefault(name, len(numbers))] * len(lines)
        rows += lines
    table = np.array(rows, np.int64).reshape(-1, 4)
    return Runs(tuple(parameters[name] for name in numbers), np.array(owners, np.int64), table)


def _lines(view: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(bytes from the view's first element, lines, bytes of a line, bytes from line to line), in row-major order."""
    size = view.itemsize
    dims = [(length, step * size) for length, step in zip(view.shape, view.stride(), strict=True) if length > 1]
    width = size
    while dims and dims[-1][1] == width:
        width *= dims.pop()[0]
    lines, apart = dims.pop() if dims else (1, width)
    for at in itertools.product(*(range(length) for length, _ in dims)):
        yield sum(index * step for index, (_, step) in zip(at, dims, strict=True)), lines, width, apart
