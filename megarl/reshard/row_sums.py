"""The checksum's sums of rows on the CPU, compiled: in a pass over the bytes, or in the very pass that packs them.

A row that was just copied is in the first-level cache: its sum costs arithmetic, and no memory. The first use in a
process compiles for the CPU it runs on (half a second for either pass, and as much for importing numba, which vLLM
needs too). Nothing is written to disk. The compiled loops run without Python's lock, so that the wire goes on beside
them in other threads.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]

_WORD_BYTES = 8
_LINE_BYTES = 64
_STRETCH_WORDS = 1 << 7  # of a row: for each its cache lines' successors are asked for at once
_AHEAD_BYTES = 1 << 11


class RowSums:
    """The compiled passes with a session's weights."""

    def __init__(self, weights: NDArray[np.int64]) -> None:
        """weights: [2 * J], of a word's lower and upper half in turn."""
        self._sum = compile_sums()
        self._weights: Words = np.ascontiguousarray(weights.view(np.uint64).reshape(-1, 2).T)
        steps = (self._weights[0] + self._weights[1]) << np.uint64(31)
        self._corrections: Words = np.concatenate([np.zeros(1, np.uint64), np.cumsum(steps, dtype=np.uint64)])

    def of(self, data: Bytes, bounds: Numbers) -> list[bytes]:
        """Of each part, the bytes between two neighbours of `bounds`: the little-endian sums of its rows, the last of
        which may be short, and the bytes after its last whole word."""
        ends = self._ends(bounds)
        sums = np.empty(ends[-1], np.uint64)
        self._sum(data, bounds, self._weights, self._corrections, sums)
        return _by_part(data, bounds, sums, ends)

    def of_copy(self, runs: Numbers, out: Bytes, bounds: Numbers) -> list[bytes]:
        """Fill `out` and return its sums, as `of` does.

        runs: [n, 4] of what follows one another in `out`: an address, how many lines begin there, the bytes of a line
        and from one to the next. ValueError unless they are as many bytes as `out` and `bounds` have.
        """
        num_bytes = int((runs[:, 1] * runs[:, 2]).sum())
        if not num_bytes == len(out) == bounds[-1]:  # else the compiled loop would go on, wherever that is
            raise ValueError(f"runs of {num_bytes} bytes and parts of {bounds[-1]} for a message of {len(out)}")
        ends = self._ends(bounds)
        sums = np.empty(ends[-1], np.uint64)
        compile_copy()(runs, out, bounds, self._weights, self._corrections, sums)
        return _by_part(out, bounds, sums, ends)

    def _ends(self, bounds: Numbers) -> Numbers:
        """[parts + 1]: how many rows there are before each part, and in all."""
        rows = -(-(np.diff(bounds) // _WORD_BYTES) // self._weights.shape[1])
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])


def _by_part(data: Bytes, bounds: Numbers, sums: Words, ends: Numbers) -> list[bytes]:
    flat, places, firsts = sums.tobytes(), bounds.tolist(), (ends * _WORD_BYTES).tolist()
    parts = [flat[low:high] for low, high in itertools.pairwise(firsts)]
    for at, (start, stop) in enumerate(itertools.pairwise(places)):
        if rest := (stop - start) % _WORD_BYTES:
            parts[at] += data[stop - rest : stop].tobytes()
    return parts


@cache
def compile_sums() -> Callable[..., None]:
    """(data [bytes], bounds [parts + 1], weights [2, J], corrections [J + 1], sums [rows]) -> None; writes `sums`."""
    import numba  # here: whoever only plans a transfer does without

    sum_words, prefetch = _compile_words(), _prefetch()

    def sum_parts(data: Any, bounds: Any, weights: Any, corrections: Any, sums: Any) -> None:
        at = 0
        for part in range(bounds.shape[0] - 1):
            start = bounds[part]
            num_words = (bounds[part + 1] - start) // 8
            words = data[start : start + 8 * num_words].view(np.uint64)
            ahead = np.int64(words.ctypes.data) + _AHEAD_BYTES
            for first in range(0, num_words, weights.shape[1]):
                count = min(weights.shape[1], num_words - first)
                total = np.uint64(0)
                for begin in range(0, count, _STRETCH_WORDS):
                    for line in range(8 * (first + begin), 8 * (first + begin + _STRETCH_WORDS), _LINE_BYTES):
                        prefetch(ahead + line)
                    total += sum_words(words, first + begin, weights, begin, min(_STRETCH_WORDS, count - begin))
                sums[at] = total - corrections[count]
                at += 1

    signature = numba.void(_anywhere(), numba.int64[::1], *_of_weights(), numba.uint64[::1])
    compiled: Callable[..., None] = numba.njit(signature, nogil=True)(sum_parts)
    return compiled


@cache
def compile_copy() -> Callable[..., None]:
    """(runs [n, 4], out [bytes], bounds, weights, corrections, sums) -> None; writes `out` and `sums`, row by row."""
    import numba

    sum_words, copy_bytes = _compile_words(), _copy_bytes()

    def copy_parts(runs: Any, out: Any, bounds: Any, weights: Any, corrections: Any, sums: Any) -> None:
        to = np.int64(out.ctypes.data)
        run, line, over, at = 0, 0, 0, 0  # `over` bytes of this line of this run are copied
        for part in range(bounds.shape[0] - 1):
            start, num_bytes = bounds[part], bounds[part + 1] - bounds[part]
            words = out[start : start + num_bytes // 8 * 8].view(np.uint64)
            for first in range(0, num_bytes, 8 * weights.shape[1]):
                left = min(8 * weights.shape[1], num_bytes - first)
                num_words = left // 8
                while left > 0:
                    count = min(runs[run, 2] - over, left)
                    copy_bytes(to, runs[run, 0] + line * runs[run, 3] + over, count)
                    to, over, left = to + count, over + count, left - count
                    if over == runs[run, 2]:
                        line, over = line + 1, 0
                    if line == runs[run, 1]:
                        run, line = run + 1, 0
                if num_words > 0:
                    sums[at] = sum_words(words, first // 8, weights, 0, num_words) - corrections[num_words]
                    at += 1

    signature = numba.void(numba.int64[:, ::1], _anywhere(), numba.int64[::1], *_of_weights(), numba.uint64[::1])
    compiled: Callable[..., None] = numba.njit(signature, nogil=True)(copy_parts)
    return compiled


@cache
def _compile_words() -> Callable[..., Any]:
    """(words, first, weights, at, count) -> the sum of `count` words from `first` on, with the weights from `at` on.

    A product of a 64-bit weight and an unsigned 32-bit half is two products of 32 bits, for which CPUs have vector
    instructions; signed halves are their unsigned shifts by 2**31, and `corrections[n]` is what a row of n words has
    too much by that.
    """
    import numba

    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    shift = np.uint64(0x8000000080000000)

    def sum_words(words: Any, first: Any, weights: Any, at: Any, count: Any) -> Any:
        bottom, top = np.uint64(0), np.uint64(0)
        first, at = (
            np.uint64(first),
            np.uint64(at),
        )  # indexes without a sign are not looked at for counting from the end
        for j in range(np.uint64(count)):
            word = words[first + j] ^ shift
            lower, upper = word & low, word >> half
            bottom += lower * (weights[0, at + j] & low) + upper * (weights[1, at + j] & low)
            top += lower * (weights[0, at + j] >> half) + upper * (weights[1, at + j] >> half)
        return bottom + (top << half)

    compiled: Callable[..., Any] = numba.njit(nogil=True)(sum_words)
    return compiled


@cache
def _prefetch() -> Callable[..., None]:
    """(address) -> None: ask for the cache line of an address, which need not be anybody's; for compiled functions."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])

    def prefetch(_typing: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            line = builder.inttoptr(arguments[0], cgutils.voidptr_t)
            function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
            builder.call(function, [line, *(ir.Constant(number, value) for value in (0, 3, 1))])  # to read, soon; data
            return context.get_dummy_value()

        return types.void(types.int64), generate

    compiled: Callable[..., None] = intrinsic(prefetch)
    return compiled


@cache
def _copy_bytes() -> Callable[..., None]:
    """(to, source, count) -> None: memcpy between addresses, for compiled functions."""
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def copy_bytes(_typing: Any, _to: Any, _source: Any, _count: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            to, source, count = arguments
            places = [builder.inttoptr(address, cgutils.voidptr_t) for address in (to, source)]
            cgutils.raw_memcpy(builder, *places, count, 1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    compiled: Callable[..., None] = intrinsic(copy_bytes)
    return compiled


def _anywhere() -> Any:
    """Bytes whose words need not be aligned."""
    import numba

    return numba.types.Array(numba.uint8, 1, "C", aligned=False)


def _of_weights() -> tuple[Any, Any]:
    import numba

    return numba.uint64[:, ::1], numba.uint64[::1]
