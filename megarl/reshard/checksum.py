"""Keyed 64-bit checksums of a tensor's bytes that CPU and CUDA compute alike.

The bytes are read as little-endian signed 32-bit halves h[i, k] of 64-bit words, in rows of `_ROW_WORDS` words. A row
gives the sum over k of h[i, k] * u[k] modulo 2**64, with every u[k] of 64 bits drawn from the session's secret. All
sums, the bytes that make no whole word and the number of bytes go through the session's seal (HMAC-SHA256), of which 64
bits are the checksum. The sums are integers, so the result does not depend on device, thread count or summation order.

What a stranger can do who sees and changes what is on the wire, but has not the secret: he guesses. Two tensors of one
length differ in some half of some row, by d with 0 < |d| < 2**32; that row's sums then differ by d * u[k] + (what its
other halves add, whose weights are drawn apart from u[k]). 2**31 is the highest power of two that may divide d, so
d * u[k] takes any one value modulo 2**64 for at most 2**31 of the 2**64 values of u[k]: a changed tensor has the same
sums with probability at most 2**-33 over the secret, whatever he changes. The seal hides the sums, so that he learns
nothing from checksums he has seen, and gives another 2**-64. A guess that fails ends the session with an error that
names it. This is the multilinear family of Lemire and Kaser, "Strongly universal string hashing is fast" (2014).

Why halves and not whole words: bits that only reach the top of a 64-bit product are lost to it (two flipped signs would
pass). Why not SHA-256 or GHASH: they read host memory only, so weights on a GPU would have to be copied to the host to
be checked. Why compiled for the CPU (row_sums.py): one pass over memory takes as long as memory does, where tensor
operations took four to five times as long, and a pass that packs can compute the sums beside copying.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from megarl.reshard.row_sums import Numbers, RowSums
from megarl.reshard.seal import Seal

_ROW_WORDS = 1 << 10  # their weights, 16 KiB, stay in the first-level cache
_CUDA_ROWS = 1 << 12  # rows per kernel: their products are in memory at once
_WORD_BYTES = 8
ROW_BYTES = _ROW_WORDS * _WORD_BYTES


def as_bytes(tensor: Tensor) -> Tensor:
    """[nbytes] uint8: the tensor's elements in row-major order; a view when it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Checksums:
    """Computes the checksums of one session. The first of a process compile, which takes a second."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        drawn = hashlib.shake_256(seal.of(b"weights of the checksum")).digest(2 * _ROW_WORDS * _WORD_BYTES)
        weights = torch.frombuffer(bytearray(drawn), dtype=torch.int64)
        self._weights = {torch.device("cpu"): weights}
        self._on_cpu = RowSums(weights.numpy())

    def of(self, tensor: Tensor) -> int:
        """Of a tensor of any dtype, shape and device, in 0 .. 2**64 - 1. Only bytes count, not dtype and shape."""
        (checksum,) = self.of_parts(tensor, [0, tensor.nbytes])
        return checksum

    def of_parts(self, tensor: Tensor, bounds: Sequence[int]) -> list[int]:
        """Of each part of a tensor's bytes, between two neighbours of `bounds`."""
        data = as_bytes(tensor)
        if data.is_cuda:
            ranges = itertools.pairwise(bounds)
            return self._seal_parts(bounds, (self._sums_by_operations(data[start:stop]) for start, stop in ranges))
        return self._seal_parts(bounds, self._on_cpu.of(data.numpy(), np.array(bounds, np.int64)))

    def of_copy(self, runs: Numbers, out: Tensor, bounds: Sequence[int]) -> list[int]:
        """Fill `out`, contiguous in host memory, from `runs` (see RowSums.of_copy); its checksums, as `of_parts`."""
        data = out.view(-1).view(torch.uint8).numpy()
        return self._seal_parts(bounds, self._on_cpu.of_copy(runs, data, np.array(bounds, np.int64)))

    def _seal_parts(self, bounds: Sequence[int], sums: Iterable[bytes]) -> list[int]:
        sizes = (stop - start for start, stop in itertools.pairwise(bounds))
        return [self._seal_sums(size, of_part) for size, of_part in zip(sizes, sums, strict=True)]

    def _seal_sums(self, num_bytes: int, sums: bytes) -> int:
        """The checksum of so many bytes with these sums."""
        seal = self._seal.of(b"checksum", num_bytes.to_bytes(_WORD_BYTES, "little"), sums)
        return int.from_bytes(seal[:_WORD_BYTES], "little")

    def _sums_by_operations(self, data: Tensor) -> bytes:
        if data.data_ptr() % _WORD_BYTES or data.storage_offset() % _WORD_BYTES:
            data = data.clone()  # words need an aligned start
        num_words, over = divmod(data.numel(), _WORD_BYTES)
        words = data[: num_words * _WORD_BYTES].view(torch.int64)
        full = num_words // _ROW_WORDS * _ROW_WORDS
        rows = [*words[:full].view(-1, _ROW_WORDS).split(_CUDA_ROWS)] if full else []
        if full < num_words:
            rows.append(words[full:].view(1, -1))
        weights = self._weights_on(data.device)
        sums = [sum_rows(part_RJ, weights[: 2 * part_RJ.shape[1]]).cpu().numpy().tobytes() for part_RJ in rows]
        return b"".join([*sums, data[data.numel() - over :].cpu().numpy().tobytes()])

    def _weights_on(self, device: torch.device) -> Tensor:
        """[2 * _ROW_WORDS] int64."""
        if device not in self._weights:
            self._weights[device] = self._weights[torch.device("cpu")].to(device)
        return self._weights[device]


def sum_rows(words_RJ: Tensor, weights_2J: Tensor) -> Tensor:
    """[R] int64: the sum of each row of words, two halves a word."""
    return (words_RJ.view(torch.int32) * weights_2J).sum(dim=1)
