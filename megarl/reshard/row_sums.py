"""The checksum's sums of rows on the CPU, compiled: one pass over the words, at the speed of memory.

The first use in a process compiles for the CPU it runs on (half a second, and as much for importing numba, which vLLM
needs too). Nothing is written to disk. The compiled loop runs without Python's lock, so that packing and the wire go on
beside it in other threads.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


@cache
def compile_row_sums() -> Callable[..., None]:
    """(words [N], weights [2, J], corrections [J + 1], sums [rows]) -> None; writes `sums`. Words may lie anywhere.

    A product of a 64-bit weight and an unsigned 32-bit half is two products of 32 bits, for which CPUs have vector
    instructions; signed halves are their unsigned shifts by 2**31, and `corrections[n]` is what a row of n words has
    too much by that.
    """
    import numba  # here: whoever only plans a transfer does without

    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    shift = np.uint64(0x8000000080000000)

    def row_sums(words: Any, weights: Any, corrections: Any, sums: Any) -> None:
        for row in range(sums.shape[0]):
            first = row * weights.shape[1]
            of_row = words[first : first + weights.shape[1]]
            bottom, top = np.uint64(0), np.uint64(0)
            for j in range(of_row.shape[0]):
                word = of_row[j] ^ shift
                lower, upper = word & low, word >> half
                bottom += lower * (weights[0, j] & low) + upper * (weights[1, j] & low)
                top += lower * (weights[0, j] >> half) + upper * (weights[1, j] >> half)
            sums[row] = bottom + (top << half) - corrections[of_row.shape[0]]

    vector, matrix = numba.uint64[::1], numba.uint64[:, ::1]
    anywhere = numba.types.Array(numba.uint64, 1, "C", aligned=False)
    signature = numba.void(anywhere, matrix, vector, vector)
    compiled: Callable[..., None] = numba.njit(signature, nogil=True)(row_sums)
    return compiled


class RowSums:
    """The compiled loop with a session's weights."""

    def __init__(self, compiled: Callable[..., None], weights: NDArray[np.int64]) -> None:
        """weights: [2 * J], of a word's lower and upper half in turn."""
        self._compiled = compiled
        self._weights: Words = np.ascontiguousarray(weights.view(np.uint64).reshape(-1, 2).T)
        steps = (self._weights[0] + self._weights[1]) << np.uint64(31)
        self._corrections: Words = np.concatenate([np.zeros(1, np.uint64), np.cumsum(steps, dtype=np.uint64)])

    def of(self, data: Bytes) -> bytes:
        """The little-endian sums of all rows of contiguous whole words, the last of which may be short."""
        words = data.view(np.uint64)
        sums = np.empty(-(-len(words) // self._weights.shape[1]), np.uint64)
        self._compiled(words, self._weights, self._corrections, sums)
        return sums.tobytes()
