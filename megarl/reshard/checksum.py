"""Keyed 64-bit checksums of a tensor's bytes that CPU and CUDA compute alike.

The bytes are read as little-endian int64 words x[i, j] in rows of `_ROW_WORDS`. A row gives two sums modulo 2**64,
sum_j x[i, j] * w[j] and sum_j (x[i, j] >> 32) * v[j], with w and v of 64 bits each drawn from the session's secret.
All sums, the bytes that make no whole word and the number of bytes go through the session's seal (HMAC-SHA256), of
which 64 bits are the checksum. The sums are integers, so the result does not depend on device, thread count or
summation order.

What a stranger can do who sees and changes what is on the wire, but has not the secret: he guesses. Two tensors of one
length differ in a word; if in its upper half, the second sum differs by d * v[j] + (what other words add) with
0 < |d| < 2**32, which takes any one value for at most 2**31 of the 2**64 values of v[j]; if in its lower half only, the
first sum likewise. So a changed tensor has the same sums with probability at most 2**-33 over the secret, whatever he
changes; the seal hides the sums, so that he learns nothing from checksums he has seen, and gives another 2**-64. A
guess that fails ends the session with an error that names it.

Why two sums: bits that only reach the top of a 64-bit product are lost to one (two flipped signs would pass). Why not
SHA-256 or GHASH: they read host memory only, so weights on a GPU would have to be copied to the host to be checked.
"""

import hashlib

import torch
from torch import Tensor

from megarl.reshard.seal import Seal

_ROW_WORDS = 1 << 13
_CUDA_ROWS = 512  # rows per kernel: their products are in memory at once
_CPU_ROWS = 8  # their shifted words stay in the cache
_WORD_BYTES = 8
_HALF = 32


def as_bytes(tensor: Tensor) -> Tensor:
    """[nbytes] uint8: the tensor's elements in row-major order; a view when it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Checksums:
    """Computes the checksums of one session."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        drawn = hashlib.shake_256(seal.of(b"weights of the checksum")).digest(2 * _ROW_WORDS * _WORD_BYTES)
        self._weights = {torch.device("cpu"): torch.frombuffer(bytearray(drawn), dtype=torch.int64).view(2, _ROW_WORDS)}

    def of(self, tensor: Tensor) -> int:
        """Of a tensor of any dtype, shape and device, in 0 .. 2**64 - 1. Only bytes count, not dtype and shape."""
        data = as_bytes(tensor)
        sums = b"".join(word.to_bytes(_WORD_BYTES, "little", signed=True) for word in self._sums(data))
        seal = self._seal.of(b"checksum", data.numel().to_bytes(_WORD_BYTES, "little"), sums)
        return int.from_bytes(seal[:_WORD_BYTES], "little")

    def _sums(self, data: Tensor) -> list[int]:
        if data.data_ptr() % _WORD_BYTES:
            data = data.clone()  # words need an aligned start
        num_words, over = divmod(data.numel(), _WORD_BYTES)
        words = data[: num_words * _WORD_BYTES].view(torch.int64)
        full = num_words // _ROW_WORDS * _ROW_WORDS
        weights_2J = self._weights_on(words.device)
        sums = _row_sums(words[:full].view(-1, _ROW_WORDS), weights_2J)
        if full < num_words:
            rest = words[full:]
            sums += _row_sums(rest.view(1, -1), weights_2J[:, : rest.numel()])
        if over:
            tail = torch.zeros(_WORD_BYTES, dtype=torch.uint8, device=data.device)
            tail[:over] = data[num_words * _WORD_BYTES :]
            sums += tail.view(torch.int64).tolist()  # as it is: it is sealed with the sums
        return sums

    def _weights_on(self, device: torch.device) -> Tensor:
        """[2, _ROW_WORDS] int64."""
        if device not in self._weights:
            self._weights[device] = self._weights[torch.device("cpu")].to(device)
        return self._weights[device]


def _row_sums(words_RJ: Tensor, weights_2J: Tensor) -> list[int]:
    """Both sums of every row, row after row."""
    if not len(words_RJ):
        return []
    parts = words_RJ.split(_CUDA_ROWS if words_RJ.is_cuda else _CPU_ROWS)
    return torch.cat([torch.stack(_two_sums(part, weights_2J), dim=1).view(-1) for part in parts]).tolist()


def _two_sums(words_RJ: Tensor, weights_2J: Tensor) -> tuple[Tensor, Tensor]:
    low_J, high_J = weights_2J
    upper_RJ = words_RJ >> _HALF
    if words_RJ.is_cuda:
        return (words_RJ * low_J).sum(dim=1), (upper_RJ * high_J).sum(dim=1)
    # Without products in memory; CUDA has it for floats only.
    return torch.mv(words_RJ, low_J), torch.mv(upper_RJ, high_J)
