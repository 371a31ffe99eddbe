"""Token statistics and gradients from hidden states and output weight as Triton kernels, for CUDA.

T = tokens, H = hidden size, C = this rank's valid vocabulary rows, K = 4 or 6 (token_statistics.py). In kernels B is a
tile of tokens, D of vocabulary rows, E of the summed dimension.

What is true:
* Forward: a program takes a tile of tokens and a stretch of the vocabulary, forms one tile of logits after the other
  with tensor-core products summed in float32, and keeps only the online statistics; stretches are merged by the same
  function as ranks. Logits never reach memory.
* Backward: for one block of vocabulary rows after the other, a kernel forms the logits again and writes their gradient,
  in the operands' dtype, into a buffer of at most GRADIENT_BUFFER_BYTES. From it come the block's weight gradient, one
  matrix product over all tokens that is rounded once, and the block's addition to the hidden states' gradient, which is
  summed in float32.
* float32 operands are multiplied as float32; torch's product for the weight gradient follows the process's setting of
  TF32.
* These kernels have run in Triton's interpreter on the CPU, where they are compared with the float64 reference, and
  have been compiled for NVIDIA's sm_80 and sm_90. They have never run on a GPU: speed there is unmeasured, and the tile
  sizes are untuned.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917  (a kernel takes its pointers and strides one by one)

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from megarl.parallel.token_statistics import TokenGradient, combine_shards, empty_statistics
from megarl.parallel.vocab_triton import (
    base_two_factor,
    gradient_of_logits,
    store_statistics,
    token_coefficients,
    update_statistics,
)

GRADIENT_BUFFER_BYTES = 32 << 20
STRETCH_COLUMNS = 4096
"""Vocabulary rows that one program of the forward kernel walks over."""


class _Tiles(NamedTuple):
    tokens: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


_HALF_TILES = _Tiles(tokens=128, columns=128, inner=64, num_warps=8, num_stages=3)
_FLOAT_TILES = _Tiles(tokens=64, columns=64, inner=32, num_warps=8, num_stages=2)


def shard_statistics(
    hidden_TH: Tensor, weight_CH: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool
) -> Tensor:
    """See `FusedLinearKernels.shard_statistics`. ValueError for operands that are not float32, bfloat16 or float16."""
    tiles = _tiles(hidden_TH.dtype)
    num_tokens, num_columns = hidden_TH.shape[0], weight_CH.shape[0]
    if num_columns == 0 or num_tokens == 0:
        return empty_statistics(
            num_tokens, dtype=torch.float32, device=hidden_TH.device, with_expected_q=with_expected_q
        )
    num_stretches = triton.cdiv(num_columns, STRETCH_COLUMNS)
    table_WTK = hidden_TH.new_empty(num_stretches, num_tokens, 6 if with_expected_q else 4, dtype=torch.float32)
    factor = base_two_factor(scale, like=table_WTK[0, :, 0])
    with torch.cuda.device_of(hidden_TH):
        _statistics_kernel[(triton.cdiv(num_tokens, tiles.tokens), num_stretches)](
            hidden_TH,
            weight_CH,
            column_T,
            factor,
            table_WTK,
            num_tokens,
            num_columns,
            hidden_TH.shape[1],
            *hidden_TH.stride(),
            *weight_CH.stride(),
            factor.stride(0),
            EXPECTED_Q=with_expected_q,
            STRETCH=STRETCH_COLUMNS,
            BLOCK_B=tiles.tokens,
            BLOCK_D=tiles.columns,
            BLOCK_E=tiles.inner,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return combine_shards(table_WTK, scale)


def write_gradients(
    grad_hidden_TH: Tensor | None,
    grad_weight_CH: Tensor | None,
    hidden_TH: Tensor,
    weight_CH: Tensor,
    column_T: Tensor,
    *,
    gradient: TokenGradient,
) -> None:
    """See `FusedLinearKernels.write_gradients`."""
    num_tokens, num_columns = hidden_TH.shape[0], weight_CH.shape[0]
    hidden_sum_TH = None
    if grad_hidden_TH is not None:
        hidden_sum_TH = torch.zeros(hidden_TH.shape, dtype=torch.float32, device=hidden_TH.device)
    step = _buffer_columns(num_tokens, hidden_TH)
    for start in range(0, num_columns, step):
        columns = slice(start, min(start + step, num_columns))
        logits_grad_TD = hidden_TH.new_empty(num_tokens, columns.stop - columns.start)
        _fill_gradient(logits_grad_TD, hidden_TH, weight_CH[columns], column_T - start, gradient=gradient)
        if grad_weight_CH is not None:
            torch.mm(logits_grad_TD.t(), hidden_TH, out=grad_weight_CH[columns])
        if hidden_sum_TH is not None:
            _add_product(hidden_sum_TH, logits_grad_TD, weight_CH[columns])
    if grad_hidden_TH is not None and hidden_sum_TH is not None:
        grad_hidden_TH.copy_(hidden_sum_TH)


def _fill_gradient(
    out_TD: Tensor, hidden_TH: Tensor, weight_DH: Tensor, column_T: Tensor, *, gradient: TokenGradient
) -> None:
    """The logits' gradient for these vocabulary rows; `column_T` counts from the first of them."""
    if out_TD.numel() == 0:
        return
    tiles = _tiles(hidden_TH.dtype)
    factor = base_two_factor(gradient.scale, like=gradient.max_T)
    grid = (triton.cdiv(out_TD.shape[0], tiles.tokens), triton.cdiv(out_TD.shape[1], tiles.columns))
    with torch.cuda.device_of(hidden_TH):
        _gradient_kernel[grid](
            hidden_TH,
            weight_DH,
            column_T,
            factor,
            *token_coefficients(gradient),
            out_TD,
            *out_TD.shape,
            hidden_TH.shape[1],
            *hidden_TH.stride(),
            *weight_DH.stride(),
            factor.stride(0),
            BLOCK_B=tiles.tokens,
            BLOCK_D=tiles.columns,
            BLOCK_E=tiles.inner,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def _add_product(total_TH: Tensor, left_TD: Tensor, right_DH: Tensor) -> None:
    """total += left @ right, summed in float32: cuBLAS would round each block's product to bf16 first."""
    if total_TH.numel() == 0:
        return
    tiles = _tiles(left_TD.dtype)
    grid = (triton.cdiv(total_TH.shape[0], tiles.tokens), triton.cdiv(total_TH.shape[1], tiles.columns))
    with torch.cuda.device_of(total_TH):
        _add_product_kernel[grid](
            left_TD,
            right_DH,
            total_TH,
            *total_TH.shape,
            left_TD.shape[1],
            *right_DH.stride(),
            BLOCK_B=tiles.tokens,
            BLOCK_H=tiles.columns,
            BLOCK_E=tiles.inner,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def _buffer_columns(num_tokens: int, hidden_TH: Tensor) -> int:
    columns = GRADIENT_BUFFER_BYTES // max(1, num_tokens * hidden_TH.dtype.itemsize)
    tile = _tiles(hidden_TH.dtype).columns
    return max(tile, columns // tile * tile)


def _tiles(dtype: torch.dtype) -> _Tiles:
    if dtype in (torch.bfloat16, torch.float16):
        return _HALF_TILES
    if dtype == torch.float32:
        return _FLOAT_TILES
    raise ValueError(
        f"on CUDA the fused log-prob takes float32, bfloat16 or float16 operands, found {dtype}; convert hidden states "
        "and output weight"
    )


@triton.jit
def _product_tile(
    left,
    right,
    row_B,
    column_D,
    num_rows,
    num_columns,
    num_inner,
    left_row_stride,
    left_inner_stride,
    right_column_stride,
    right_inner_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """[B, D] float32: sum over e of left[row, e] * right[column, e]; 0 outside."""
    left_B = left + row_B.to(tl.int64)[:, None] * left_row_stride
    right_D = right + column_D.to(tl.int64)[None, :] * right_column_stride
    total_BD = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, num_inner, BLOCK_E):
        inner_E = start + tl.arange(0, BLOCK_E)
        wide_E = inner_E.to(tl.int64)
        left_BE = tl.load(
            left_B + wide_E[None, :] * left_inner_stride,
            mask=(row_B < num_rows)[:, None] & (inner_E < num_inner)[None, :],
            other=0.0,
        )
        right_ED = tl.load(
            right_D + wide_E[:, None] * right_inner_stride,
            mask=(inner_E < num_inner)[:, None] & (column_D < num_columns)[None, :],
            other=0.0,
        )
        total_BD = tl.dot(left_BE, right_ED, total_BD, input_precision="ieee")
    return total_BD


@triton.jit
def _statistics_kernel(
    hidden,
    weight,
    column,
    factor,
    out,
    num_tokens,
    num_columns,
    hidden_size,
    hidden_token_stride,
    hidden_inner_stride,
    weight_column_stride,
    weight_inner_stride,
    factor_stride,
    EXPECTED_Q: tl.constexpr,
    STRETCH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    token_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    stretch = tl.program_id(1)
    present_B = token_B < num_tokens
    factor_B = tl.load(factor + token_B * factor_stride, mask=present_B, other=1.0)
    target_B = tl.load(column + token_B, mask=present_B, other=-1)
    largest_B = tl.full([BLOCK_B], float("-inf"), tl.float32)
    target_logit_B = tl.full([BLOCK_B], float("-inf"), tl.float32)
    sum_B = tl.zeros([BLOCK_B], tl.float32)
    dot_B = tl.zeros([BLOCK_B], tl.float32)
    square_B = tl.zeros([BLOCK_B], tl.float32)
    square_dot_B = tl.zeros([BLOCK_B], tl.float32)
    first = stretch * STRETCH
    for start in range(first, tl.minimum(first + STRETCH, num_columns), BLOCK_D):
        column_D = start + tl.arange(0, BLOCK_D)
        product_BD = _product_tile(
            hidden,
            weight,
            token_B,
            column_D,
            num_tokens,
            num_columns,
            hidden_size,
            hidden_token_stride,
            hidden_inner_stride,
            weight_column_stride,
            weight_inner_stride,
            BLOCK_B,
            BLOCK_D,
            BLOCK_E,
        )
        logits_BD = tl.where((column_D < num_columns)[None, :], product_BD, float("-inf"))
        held_BD = column_D.to(tl.int64)[None, :] == target_B[:, None]
        target_logit_B = tl.maximum(target_logit_B, tl.max(tl.where(held_BD, logits_BD, float("-inf")), 1))
        largest_B, sum_B, dot_B, square_B, square_dot_B = update_statistics(
            logits_BD, factor_B, largest_B, sum_B, dot_B, square_B, square_dot_B, EXPECTED_Q
        )
    out_B = out + (stretch.to(tl.int64) * num_tokens + token_B) * (6 if EXPECTED_Q else 4)
    store_statistics(out_B, largest_B, sum_B, dot_B, target_logit_B, square_B, square_dot_B, present_B, EXPECTED_Q)


@triton.jit
def _gradient_kernel(
    hidden,
    weight,
    column,
    factor,
    maximum,
    constant,
    slope,
    target_value,
    out,
    num_tokens,
    num_columns,
    hidden_size,
    hidden_token_stride,
    hidden_inner_stride,
    weight_column_stride,
    weight_inner_stride,
    factor_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    token_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    present_B = token_B < num_tokens
    logits_BD = _product_tile(
        hidden,
        weight,
        token_B,
        column_D,
        num_tokens,
        num_columns,
        hidden_size,
        hidden_token_stride,
        hidden_inner_stride,
        weight_column_stride,
        weight_inner_stride,
        BLOCK_B,
        BLOCK_D,
        BLOCK_E,
    )
    value_BD = gradient_of_logits(
        logits_BD,
        tl.load(maximum + token_B, mask=present_B, other=0.0)[:, None],
        tl.load(factor + token_B * factor_stride, mask=present_B, other=0.0)[:, None],
        tl.load(constant + token_B, mask=present_B, other=0.0)[:, None],
        tl.load(slope + token_B, mask=present_B, other=0.0)[:, None],
        tl.load(target_value + token_B, mask=present_B, other=0.0)[:, None],
        column_D.to(tl.int64)[None, :] == tl.load(column + token_B, mask=present_B, other=-1)[:, None],
    )
    out_BD = out + token_B.to(tl.int64)[:, None] * num_columns + column_D[None, :]
    tl.store(out_BD, value_BD.to(out.dtype.element_ty), mask=present_B[:, None] & (column_D < num_columns)[None, :])


@triton.jit
def _add_product_kernel(
    left,
    right,
    total,
    num_rows,
    num_columns,
    num_inner,
    right_inner_stride,
    right_column_stride,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    column_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    product_BH = _product_tile(
        left,
        right,
        row_B,
        column_H,
        num_rows,
        num_columns,
        num_inner,
        num_inner,
        1,
        right_column_stride,
        right_inner_stride,
        BLOCK_B,
        BLOCK_H,
        BLOCK_E,
    )
    total_BH = total + row_B.to(tl.int64)[:, None] * num_columns + column_H[None, :]
    mask_BH = (row_B < num_rows)[:, None] & (column_H < num_columns)[None, :]
    tl.store(total_BH, tl.load(total_BH, mask=mask_BH, other=0.0) + product_BH, mask=mask_BH)
