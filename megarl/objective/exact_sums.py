"""Sums over all ranks that do not depend on how the tokens are spread or ordered, to the last bit.

Floating-point addition is not associative, so a mean that decides which token is dropped could change with the
layout. Here values become integers of a common scale, set by the largest magnitude of the whole mini-batch, and
integers add up exactly. T = tokens of this rank.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from megarl.objective.segment_sums import HIGH_BITS, LOW_BITS, SMALLEST_EXPONENT, split_scaled
from megarl.objective.tokens import Reduce


def exact_sums(columns: Iterable[Tensor], reduce: Reduce) -> list[float]:
    """The sum of each column, [T], over all ranks; two collectives, whatever T and the number of columns.

    The result is the same under every layout. Each value is rounded to 2^-61 of its column's largest magnitude (float64
    sums round to 2^-53 of the running total). `columns` is iterated twice and holds one column at a time, so it
    may compute them as it goes; every rank gives equally many.

    Raises:
        ValueError: a value is NaN or infinite; on every rank.
    """
    largest = [_largest(column_T) for column_T in columns]
    if not largest:
        return []
    magnitudes = reduce.max(torch.stack(largest)).tolist()
    for index, magnitude in enumerate(magnitudes):
        if not math.isfinite(magnitude):
            raise ValueError(f"column {index} of the sums has a NaN or infinite value; finite ones are expected")
    exponents = [max(math.frexp(magnitude)[1], SMALLEST_EXPONENT) for magnitude in magnitudes]
    pairs = [_scaled_sum(column_T, exponent) for column_T, exponent in zip(columns, exponents, strict=True)]
    totals = reduce.sum(torch.stack(pairs)).tolist()
    return [
        math.ldexp(float((high << LOW_BITS) + low), exponent - HIGH_BITS - LOW_BITS)
        for (high, low), exponent in zip(totals, exponents, strict=True)
    ]


def _largest(column_T: Tensor) -> Tensor:
    """Largest magnitude, float64 scalar: 0 without tokens, inf where a value is NaN or infinite."""
    magnitude_T = column_T.detach().to(torch.float64).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.cat((magnitude_T.new_zeros(1), magnitude_T)).amax()


def _scaled_sum(column_T: Tensor, exponent: int) -> Tensor:
    """[2] int64: sums of the high and the low integers of value / 2^exponent, which is at most 1 in magnitude."""
    high_T, low_T = split_scaled(column_T.detach().to(torch.float64) * 2.0 ** (HIGH_BITS - exponent))
    return torch.stack((high_T.sum(), low_T.sum()))
