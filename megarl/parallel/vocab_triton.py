"""Token statistics and the logits' gradient as Triton kernels, for CUDA.

T = tokens, V = columns, C <= V = valid ones, K = 4 or 6 (token_statistics.py).

What is true:
* Forward is one kernel that reads each logit once: a program takes one token and walks over its columns with the
  online update of (maximum, sums). Backward is one kernel that reads each logit once and writes its gradient once,
  over the logits where asked: a program writes only elements that it alone reads.
* Arithmetic is float32 (float64 for float64 logits); exponentials are powers of two, with log2(e) in the scale.
* These kernels have run in Triton's interpreter on the CPU, where they are compared with the float64 reference, and
  have been compiled for NVIDIA's sm_80 and sm_90. They have never run on a GPU: speed there is unmeasured, and block
  sizes are untuned.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917  (a kernel takes its pointers and strides one by one)

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from megarl.parallel import token_statistics
from megarl.parallel.token_statistics import TokenGradient, empty_statistics, statistics_dtype

EXPONENT_FLOOR = tl.constexpr(token_statistics.EXPONENT_FLOOR)
LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2.0))
BLOCK_COLUMNS = 4096
NUM_WARPS = 8


def shard_statistics(logits_TC: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool) -> Tensor:
    """See `VocabKernels.shard_statistics`."""
    dtype = statistics_dtype(logits_TC.dtype)
    num_tokens, num_columns = logits_TC.shape
    table_TK = empty_statistics(num_tokens, dtype=dtype, device=logits_TC.device, with_expected_q=with_expected_q)
    if num_columns == 0 or num_tokens == 0:
        return table_TK
    factor = base_two_factor(scale, like=table_TK)
    with torch.cuda.device_of(logits_TC):
        _statistics_kernel[(num_tokens,)](
            logits_TC,
            column_T,
            factor,
            table_TK,
            num_columns,
            *logits_TC.stride(),
            factor.stride(0),
            DTYPE=kernel_dtype(dtype),
            EXPECTED_Q=with_expected_q,
            BLOCK=min(BLOCK_COLUMNS, triton.next_power_of_2(num_columns)),
            num_warps=NUM_WARPS,
        )
    return table_TK


def write_gradient(
    out_TV: Tensor, logits_TV: Tensor, column_T: Tensor, *, num_valid: int, gradient: TokenGradient
) -> None:
    """See `VocabKernels.write_gradient`."""
    num_tokens, num_columns = out_TV.shape
    if out_TV.numel() == 0:
        return
    factor = base_two_factor(gradient.scale, like=gradient.max_T)
    block = min(BLOCK_COLUMNS, triton.next_power_of_2(num_columns))
    with torch.cuda.device_of(logits_TV):
        _gradient_kernel[(num_tokens, triton.cdiv(num_columns, block))](
            logits_TV,
            out_TV,
            column_T,
            factor,
            *token_coefficients(gradient),
            num_valid,
            num_columns,
            *logits_TV.stride(),
            *out_TV.stride(),
            factor.stride(0),
            DTYPE=kernel_dtype(gradient.max_T.dtype),
            BLOCK=block,
            num_warps=NUM_WARPS,
        )


def base_two_factor(scale: float | Tensor, *, like: Tensor) -> Tensor:
    """scale * log2(e), per token, or one number with stride 0: a kernel's own float argument would be float32."""
    if isinstance(scale, Tensor):
        return scale.to(like.dtype) * LOG2_E
    return like.new_full((1,), scale * LOG2_E).expand(like.shape[0])


def token_coefficients(gradient: TokenGradient) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(max, constant, slope per unit of the base-two exponent, target), each contiguous [T], 0 for what is None."""
    zeros_T = torch.zeros_like(gradient.max_T)
    slope_T = zeros_T if gradient.slope_T is None else gradient.slope_T * LN_2.value
    target_T = zeros_T if gradient.target_T is None else gradient.target_T
    return gradient.max_T.contiguous(), gradient.constant_T.contiguous(), slope_T.contiguous(), target_T.contiguous()


def kernel_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a statistics dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def floored_exponent(logits, origin, factor):
    """(z - origin) * factor, not below the floor; NaN stays NaN, which a maximum would not grant."""
    exponent = (logits - origin) * factor
    return tl.where(exponent < EXPONENT_FLOOR, EXPONENT_FLOOR, exponent)


@triton.jit
def update_statistics(logits_RB, factor_R, largest_R, sum_R, dot_R, square_R, square_dot_R, EXPECTED_Q: tl.constexpr):
    """Statistics of R rows after a block of B columns; dots are in units of the base-two exponent."""
    new_R = tl.maximum(largest_R, tl.max(logits_RB, 1))
    # A row without a finite logit so far has no maximum to subtract.
    origin_R = tl.where(new_R == float("-inf"), 0.0, new_R)
    gap_R = floored_exponent(largest_R, origin_R, factor_R)
    moved_R = tl.exp2(gap_R)
    exponent_RB = floored_exponent(logits_RB, origin_R[:, None], factor_R[:, None])
    weight_RB = tl.exp2(exponent_RB)
    weighted_RB = weight_RB * exponent_RB
    dot_R = moved_R * (dot_R + gap_R * sum_R) + tl.sum(weighted_RB, 1)
    sum_R = moved_R * sum_R + tl.sum(weight_RB, 1)
    if EXPECTED_Q:
        moved_R = moved_R * moved_R
        square_dot_R = moved_R * (square_dot_R + gap_R * square_R) + tl.sum(weight_RB * weighted_RB, 1)
        square_R = moved_R * square_R + tl.sum(weight_RB * weight_RB, 1)
    return new_R, sum_R, dot_R, square_R, square_dot_R


@triton.jit
def store_statistics(
    out_R, largest_R, sum_R, dot_R, target_R, square_R, square_dot_R, mask_R, EXPECTED_Q: tl.constexpr
):
    """Write rows of a [T, K] table, dots in natural units. The order is that of token_statistics.py."""
    tl.store(out_R, largest_R, mask=mask_R)
    tl.store(out_R + 1, sum_R, mask=mask_R)
    tl.store(out_R + 2, dot_R * LN_2, mask=mask_R)
    tl.store(out_R + 3, target_R, mask=mask_R)
    if EXPECTED_Q:
        tl.store(out_R + 4, square_R, mask=mask_R)
        tl.store(out_R + 5, square_dot_R * LN_2, mask=mask_R)


@triton.jit
def gradient_of_logits(logits, maximum, factor, constant, slope, target_value, is_target):
    """exp(d) (constant + slope d) + target 1[target]."""
    exponent = floored_exponent(logits, maximum, factor)
    value = tl.exp2(exponent) * (constant + slope * exponent)
    return tl.where(is_target, value + target_value, value)


@triton.jit
def _statistics_kernel(
    logits,
    column,
    factor,
    out,
    num_columns,
    token_stride,
    column_stride,
    factor_stride,
    DTYPE: tl.constexpr,
    EXPECTED_Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One row as a tile of one: the update is shared with the kernel that has many.
    token_R = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    factor_R = tl.load(factor + token_R * factor_stride)
    target_R = tl.load(column + token_R)
    row_R = logits + token_R * token_stride
    largest_R = tl.full([1], float("-inf"), DTYPE)
    sum_R = tl.zeros([1], DTYPE)
    dot_R = tl.zeros([1], DTYPE)
    square_R = tl.zeros([1], DTYPE)
    square_dot_R = tl.zeros([1], DTYPE)
    for start in range(0, num_columns, BLOCK):
        column_B = start + tl.arange(0, BLOCK)
        address_RB = row_R[:, None] + column_B.to(tl.int64)[None, :] * column_stride
        logits_RB = tl.load(address_RB, mask=(column_B < num_columns)[None, :], other=float("-inf")).to(DTYPE)
        largest_R, sum_R, dot_R, square_R, square_dot_R = update_statistics(
            logits_RB, factor_R, largest_R, sum_R, dot_R, square_R, square_dot_R, EXPECTED_Q
        )
    held_R = target_R >= 0
    target_logit_R = tl.load(row_R + target_R * column_stride, mask=held_R, other=float("-inf")).to(DTYPE)
    out_R = out + token_R * (6 if EXPECTED_Q else 4)
    store_statistics(out_R, largest_R, sum_R, dot_R, target_logit_R, square_R, square_dot_R, token_R >= 0, EXPECTED_Q)


@triton.jit
def _gradient_kernel(
    logits,
    out,
    column,
    factor,
    maximum,
    constant,
    slope,
    target_value,
    num_valid,
    num_columns,
    token_stride,
    column_stride,
    out_token_stride,
    out_column_stride,
    factor_stride,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide_B = column_B.to(tl.int64)
    valid_B = column_B < num_valid
    address_B = logits + token * token_stride + wide_B * column_stride
    logits_B = tl.load(address_B, mask=valid_B, other=float("-inf")).to(DTYPE)
    value_B = gradient_of_logits(
        logits_B,
        tl.load(maximum + token),
        tl.load(factor + token * factor_stride),
        tl.load(constant + token),
        tl.load(slope + token),
        tl.load(target_value + token),
        wide_B == tl.load(column + token),
    )
    value_B = tl.where(valid_B, value_B, 0.0)
    out_B = out + token * out_token_stride + wide_B * out_column_stride
    tl.store(out_B, value_B.to(out.dtype.element_ty), mask=column_B < num_columns)
