"""Token statistics and the logits' gradient in blocked torch operations, for the CPU.

T = tokens, V = columns, C <= V = valid ones, B = rows of a block, K = 4 or 6 (token_statistics.py).

What is true:
* The logits are read from memory once forward, read and written once backward; every other pass is over a block of
  whole rows that stays in the cache. Beside the logits two such blocks exist, whatever T is.
* bf16 logits are converted once per block, into scratch; statistics are float32 (float64 for float64 logits).
* Exponentials are powers of two: torch's `exp2` is vectorised with AVX-512, its `exp` goes through MKL, which on AMD
  processors takes 2.8 times as long. log2(e) is part of the scale, so it costs nothing.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from megarl.parallel.token_statistics import (
    DOT,
    EXPONENT_FLOOR,
    MAXIMUM,
    SQUARE_DOT,
    SQUARE_SUM,
    SUM,
    TARGET,
    TokenGradient,
    empty_statistics,
    rows_of,
    statistics_dtype,
)

BLOCK_BYTES = 3 << 20
"""One scratch block. Two of them stay in a core's share of the cache, and hide the cost of calling torch."""
LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


def shard_statistics(logits_TC: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool) -> Tensor:
    """See `VocabKernels.shard_statistics`."""
    dtype = statistics_dtype(logits_TC.dtype)
    num_tokens, num_columns = logits_TC.shape
    table_TK = empty_statistics(num_tokens, dtype=dtype, device=logits_TC.device, with_expected_q=with_expected_q)
    if num_columns == 0 or num_tokens == 0:
        return table_TK
    target_T = logits_TC.gather(1, column_T.clamp(min=0)[:, None])[:, 0].to(dtype)
    table_TK[:, TARGET] = torch.where(column_T >= 0, target_T, -torch.inf)
    shifted, weight = _scratch(logits_TC), _scratch(logits_TC)
    for rows in _row_blocks(logits_TC):
        block_BC = logits_TC[rows]
        size = block_BC.shape[0]
        reduce_block(block_BC, table_TK[rows], scale=rows_of(scale, rows), shifted=shifted[:size], weight=weight[:size])
    return table_TK


def reduce_block(block_BC: Tensor, out_BK: Tensor, *, scale: float | Tensor, shifted: Tensor, weight: Tensor) -> None:
    """Write all statistics of a block of logits but the target's into `out_BK`.

    `shifted` and `weight` are scratch of the block's shape in the statistics dtype; `block_BC` may be `shifted`.
    """
    if block_BC.dtype != shifted.dtype:
        block_BC = shifted.copy_(block_BC)
    max_B = block_BC.amax(1)
    out_BK[:, MAXIMUM] = max_B
    # A row that is -inf throughout this block has no maximum to subtract.
    origin_B = torch.where(max_B == -torch.inf, 0.0, max_B)
    exponent_BC = _exponent(block_BC, origin_B, scale, out=shifted)
    torch.exp2(exponent_BC, out=weight)
    out_BK[:, SUM] = weight.sum(1)
    # Not a batched matrix product: it takes twice as long here.
    out_BK[:, DOT] = exponent_BC.mul_(weight).sum(1).mul_(LN_2)
    if out_BK.shape[1] > SQUARE_SUM:
        out_BK[:, SQUARE_DOT] = exponent_BC.mul_(weight).sum(1).mul_(LN_2)
        out_BK[:, SQUARE_SUM] = weight.square_().sum(1)


def write_gradient(
    out_TV: Tensor, logits_TV: Tensor, column_T: Tensor, *, num_valid: int, gradient: TokenGradient
) -> None:
    """See `VocabKernels.write_gradient`."""
    out_TV[:, num_valid:].zero_()
    if num_valid == 0 or out_TV.shape[0] == 0:
        return
    logits_TC, out_TC = logits_TV[:, :num_valid], out_TV[:, :num_valid]
    # The target's element is computed apart, before its logit is overwritten, and rounded once. By indexing, since
    # `scatter_` copies all of a bf16 tensor.
    targets = (torch.arange(column_T.shape[0], device=column_T.device), column_T.clamp(min=0))
    target_T1 = _target_gradient(logits_TC[targets][:, None], column_T, gradient)
    shifted, weight = _scratch(logits_TC), _scratch(logits_TC)
    for rows in _row_blocks(logits_TC):
        block_BC = logits_TC[rows]
        size = block_BC.shape[0]
        scratch = (shifted[:size], weight[:size])
        gradient_block(block_BC, out_TC[rows], gradient=rows_of_gradient(gradient, rows), scratch=scratch)
    out_TC[targets] = target_T1[:, 0]


def gradient_block(
    block_BC: Tensor, out_BC: Tensor, *, gradient: TokenGradient, scratch: tuple[Tensor, Tensor]
) -> None:
    """e^d (constant + slope d) of a block of logits; `out_BC` may be `block_BC`, and both may be the first scratch."""
    shifted, weight = scratch
    if block_BC.dtype != shifted.dtype:
        block_BC = shifted.copy_(block_BC)
    exponent_BC = _exponent(block_BC, gradient.max_T, gradient.scale, out=shifted)
    if gradient.slope_T is None:
        weight_BC, factor_BC = exponent_BC.exp2_(), gradient.constant_T[:, None]
    else:
        weight_BC = torch.exp2(exponent_BC, out=weight)
        slope_B1 = (gradient.slope_T * LN_2)[:, None]
        factor_BC = exponent_BC.mul_(slope_B1).add_(gradient.constant_T[:, None])
    if out_BC.dtype == shifted.dtype:
        torch.mul(weight_BC, factor_BC, out=out_BC)
    else:
        out_BC.copy_(weight_BC.mul_(factor_BC))


def rows_of_gradient(gradient: TokenGradient, rows: slice) -> TokenGradient:
    """The coefficients of these tokens."""
    return TokenGradient(
        gradient.max_T[rows],
        rows_of(gradient.scale, rows),
        gradient.constant_T[rows],
        None if gradient.slope_T is None else gradient.slope_T[rows],
        None if gradient.target_T is None else gradient.target_T[rows],
    )


def _target_gradient(logit_T1: Tensor, column_T: Tensor, gradient: TokenGradient) -> Tensor:
    """[T, 1] gradient of the target's logit where this rank holds it, of column 0's elsewhere."""
    value = torch.empty(logit_T1.shape, dtype=gradient.max_T.dtype, device=logit_T1.device)
    gradient_block(logit_T1, value, gradient=gradient, scratch=(torch.empty_like(value), torch.empty_like(value)))
    if gradient.target_T is not None:
        value += torch.where(column_T >= 0, gradient.target_T, 0.0)[:, None]
    return value.to(logit_T1.dtype)


def _exponent(block_BC: Tensor, origin_B: Tensor, scale: float | Tensor, *, out: Tensor) -> Tensor:
    """(z - origin) * scale in powers of two, not below EXPONENT_FLOOR. Subtracted first, so no digit is lost."""
    torch.sub(block_BC, origin_B[:, None], out=out)
    out.mul_((scale * LOG2_E)[:, None] if isinstance(scale, Tensor) else scale * LOG2_E)
    return out.clamp_(min=EXPONENT_FLOOR)


def _block_rows(logits_TC: Tensor) -> int:
    row_bytes = logits_TC.shape[1] * statistics_dtype(logits_TC.dtype).itemsize
    return max(1, min(logits_TC.shape[0], BLOCK_BYTES // row_bytes))


def _row_blocks(logits_TC: Tensor) -> Iterator[slice]:
    step = _block_rows(logits_TC)
    return (slice(start, start + step) for start in range(0, logits_TC.shape[0], step))


def _scratch(logits_TC: Tensor) -> Tensor:
    shape = (_block_rows(logits_TC), logits_TC.shape[1])
    return torch.empty(shape, dtype=statistics_dtype(logits_TC.dtype), device=logits_TC.device)
