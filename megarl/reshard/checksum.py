"""A 64-bit checksum of a tensor's bytes that CPU and CUDA compute alike.

The bytes are read as little-endian int32 words x[i, j] in rows of `_ROW_WORDS` (the last padded with zeros). A row's
sum is sum_j x[i, j] * w[j] with distinct weights 0 < w[j] < 2**31, in int64; the rows are folded with Horner's rule
modulo 2**64, and the length in bytes is folded last. Integers throughout, so the result does not depend on device,
thread count or summation order. Two tensors that differ in one word always differ in checksum (w[j] * delta is a
nonzero integer below 2**63), and so do two that have two words of a row exchanged ((a - b) * (w[i] - w[j]) likewise).

Why not CRC-32: as fast on one core (about 4 GB/s each), but zlib reads host memory only, so weights on a GPU would
have to be copied to the host to be checked.
"""

from functools import lru_cache

import torch
from torch import Tensor

_ROW_WORDS = 1 << 17
_CUDA_ROWS = 64  # rows per kernel; the CPU takes one, whose 1 MiB of products stays in cache
_WEIGHT_STEP = 0x2545F491  # odd: j -> (j + 1) * step mod 2**31 visits every value once
_FOLD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@lru_cache(maxsize=2)
def _row_weights(device: torch.device) -> Tensor:
    """[_ROW_WORDS] int64, distinct, in 1 .. 2**31 - 1."""
    return (torch.arange(1, _ROW_WORDS + 1, dtype=torch.int64, device=device) * _WEIGHT_STEP) & 0x7FFFFFFF


def as_bytes(tensor: Tensor) -> Tensor:
    """[nbytes] uint8: the tensor's elements in row-major order; a view when it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _row_sums(words_RJ: Tensor, weights_J: Tensor) -> list[int]:
    step = _CUDA_ROWS if words_RJ.is_cuda else 1
    sums_R = torch.empty(words_RJ.shape[0], dtype=torch.int64, device=words_RJ.device)
    for start in range(0, words_RJ.shape[0], step):
        torch.sum(words_RJ[start : start + step] * weights_J, dim=1, out=sums_R[start : start + step])
    return sums_R.tolist()


def compute_checksum(tensor: Tensor) -> int:
    """Of a tensor of any dtype, shape and device, in 0 .. 2**64 - 1. Only bytes count, not dtype and shape."""
    data = as_bytes(tensor)
    num_bytes = data.numel()
    if num_bytes % 4:
        data = torch.cat([data, data.new_zeros(4 - num_bytes % 4)])
    elif data.storage_offset() % 4:
        data = data.clone()  # int32 words need an aligned start
    words = data.view(torch.int32)
    weights_J = _row_weights(words.device)
    full = words.numel() // _ROW_WORDS * _ROW_WORDS
    sums = _row_sums(words[:full].view(-1, _ROW_WORDS), weights_J)
    if full < words.numel():
        rest = words[full:]
        sums += _row_sums(rest.view(1, -1), weights_J[: rest.numel()])
    total = 0
    for row_sum in [*sums, num_bytes]:
        total = (total * _FOLD + row_sum) & _MASK
    return total
