"""Sums over the tokens of each response that do not depend on the order of addition, to the last bit.

A GPU adds with atomics, in no fixed order, and a micro-batch has a response's tokens at another place under another
layout. A sum that decides which token is dropped must not feel either. Here values become integers of a scale of their
response, set by its largest magnitude, and integers add up exactly. T = tokens, B = responses.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HIGH_BITS, LOW_BITS = 30, 31
"""Two integers per value, each at most 2^30 in magnitude: 2^33 tokens add up within int64."""
SMALLEST_EXPONENT = -900
"""Keeps the scale itself finite; sums of values below 2^-961 come out as 0."""
_EXPONENT_BIAS, _MANTISSA_BITS = 1023, 52


def segment_sum(values_T: Tensor, segment_T: Tensor, num_segments: int) -> Tensor:
    """[B] in the dtype of `values_T`, rounded once; differentiable. segment_T: int64, the response of each token.

    Each value is rounded to 2^-61 of its response's largest magnitude. A response with a NaN or an infinity has what
    adding gives.
    """
    return _SegmentSum.apply(values_T, segment_T, num_segments)


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_T: Tensor, segment_T: Tensor, num_segments: int) -> Tensor:
        ctx.save_for_backward(segment_T)
        wide_T = values_T.double()
        scale_B, finite_B = _scales(wide_T, segment_T, num_segments)
        high_T, low_T = split_scaled(torch.where(finite_B[segment_T], wide_T * scale_B[segment_T], 0.0))
        zeros_B = torch.zeros_like(scale_B)
        high_B, low_B = (zeros_B.long().index_add_(0, segment_T, part) for part in (high_T, low_T))
        exact_B = _joined(high_B, low_B) / scale_B
        return torch.where(finite_B, exact_B, zeros_B.index_add(0, segment_T, wide_T)).to(values_T.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None]:
        (segment_T,) = ctx.saved_tensors
        return grad_B.index_select(0, segment_T), None, None


def segment_prefix_sum(values_T: Tensor, segment_T: Tensor, num_segments: int) -> Tensor:
    """[T] in the dtype of `values_T`, detached: the sum over a token's response up to and with it, rounded once.

    Tokens of a response stand together and in order. Rounded as in `segment_sum`; NaN in a response with a NaN or an
    infinity.
    """
    wide_T = values_T.detach().double()
    scale_B, finite_B = _scales(wide_T, segment_T, num_segments)
    is_finite_T = finite_B[segment_T]
    parts = split_scaled(torch.where(is_finite_T, wide_T * scale_B[segment_T], 0.0))
    length_B = torch.zeros(num_segments, dtype=torch.int64, device=segment_T.device)
    length_B.index_add_(0, segment_T, torch.ones_like(segment_T))
    start_B = length_B.cumsum(0) - length_B
    # Integers: what is subtracted of the responses before leaves nothing behind.
    high_T, low_T = (torch.cat((part_T.new_zeros(1), part_T.cumsum(0))) for part_T in parts)
    before_T = start_B[segment_T]
    exact_T = _joined(high_T[1:] - high_T[before_T], low_T[1:] - low_T[before_T]) / scale_B[segment_T]
    return torch.where(is_finite_T, exact_T, torch.nan).to(values_T.dtype)


def _scales(wide_T: Tensor, segment_T: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """The power of two that makes a response's values at most 2^HIGH_BITS, float64 [B], and whether all are finite."""
    largest_B = wide_T.new_zeros(num_segments).scatter_reduce(0, segment_T, wide_T.abs(), "amax")
    finite_B = torch.isfinite(largest_B)
    exponent_B = torch.frexp(torch.where(finite_B, largest_B, 0.0)).exponent.long().clamp(min=SMALLEST_EXPONENT)
    return _power_of_two(HIGH_BITS - exponent_B), finite_B


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """The two integers as one float64. Both are exact float64 numbers: this addition is the first that rounds."""
    return high.double() + low.double() * 2.0**-LOW_BITS


def split_scaled(scaled_T: Tensor) -> tuple[Tensor, Tensor]:
    """float64 values of at most 2^HIGH_BITS as int64 (high, low), the low ones of 2^-LOW_BITS."""
    high_T = scaled_T.round()
    low_T = ((scaled_T - high_T) * 2.0**LOW_BITS).round()
    return high_T.long(), low_T.long()


def _power_of_two(exponent: Tensor) -> Tensor:
    """float64 2^exponent, exactly, for int64 exponents of normal numbers; a device's own power may round."""
    return ((exponent + _EXPONENT_BIAS) << _MANTISSA_BITS).view(torch.float64)
