"""Which rows of Arrow arrays are equal, without converting any of them."""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MOST_SEEN = 65_536


class SeenRows:
    """Numbers rows batch by batch: equal rows get one number, and only rows that are new are looked at.

    It remembers at most 65,536 different rows; beyond that a row that came in an earlier batch may be looked at again.
    """

    def __init__(self) -> None:
        self._arrays: list[pa.Array] = []
        self._numbers = np.zeros(0, dtype=np.int64)

    def number(self, arrays: Sequence[pa.Array], number_new: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The number of every row of parallel `arrays`; `number_new` gives those of the rows at new positions."""
        if [array.type for array in arrays] != [array.type for array in self._arrays]:
            self._arrays, self._numbers = [array[:0] for array in arrays], np.zeros(0, dtype=np.int64)
        seen = len(self._numbers)
        joined = [pa.concat_arrays(pair) for pair in zip(self._arrays, arrays, strict=True)]
        positions, same = first_rows(joined)
        numbers = np.concatenate([self._numbers, number_new(positions[seen:] - seen)])
        if len(numbers) <= _MOST_SEEN:
            self._arrays = [array.take(pa.array(positions)) for array in joined]
            self._numbers = numbers
        return numbers[same[seen:]]


def first_rows(arrays: Sequence[pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(positions, same): where a combination of the arrays' values first appears, ascending, and for every row which
    of these it equals. Values of a type that cannot be compared here count as different."""
    codes = reduce(_pair, map(row_codes, arrays))
    positions, same = np.unique(codes, return_index=True, return_inverse=True)[1:]
    order = np.argsort(positions)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return positions[order], rank[same]


def row_codes(array: pa.Array) -> np.ndarray:
    """Non-negative integers, one a row, equal exactly where the values are equal; null equals null."""
    kind = array.type
    if pa.types.is_struct(kind):
        fields = [row_codes(field) for field in array.flatten()]
        return reduce(_pair, fields, np.asarray(array.is_null(), dtype=np.int64))
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return _list_codes(array)
    try:
        indices = pc.dictionary_encode(array).indices
    except pa.ArrowNotImplementedError:
        return np.arange(len(array), dtype=np.int64)
    return np.asarray(indices.cast(pa.int64()).fill_null(-1), dtype=np.int64) + 1


def _list_codes(array: pa.Array) -> np.ndarray:
    """Lists element by element: after k rounds two rows of equal length share a code where their first k agree."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(-1), dtype=np.int64)
    elements = row_codes(array.flatten())
    starts = np.cumsum(np.maximum(lengths, 0)) - np.maximum(lengths, 0)
    codes = np.zeros(len(lengths), dtype=np.int64)
    for k in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > k)
        codes[rows] = _pair(codes[rows], elements[starts[rows] + k])
    return _pair(codes, lengths + 1)


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Codes of the pairs, below the number of rows so that pairs of pairs stay within 64 bits."""
    if not len(first) or second.min() == second.max():
        return first
    if first.min() == first.max():
        return second
    combined = first * (int(second.max()) + 1) + second
    return np.unique(combined, return_inverse=True)[1].astype(np.int64)
