"""Log-prob and entropy of each token from vocabulary-parallel logits.

T = tokens, V = this rank's logit columns, C <= V = its valid ones, B = rows of a block, W = tensor ranks.

What is true:
* Forward reads the logits once and makes one all-gather of four numbers per token; backward reads and writes them once
  and makes no collective. What is saved for backward is the logits themselves and per-token scalars: no softmax.
* With `inplace_backward` the gradient is written over the logits, so beside them only blocks of scratch rows exist.
* Statistics are float32 (float64 for float64 logits) whatever the dtype of the logits, without a float32 copy of them.
* Merging shards is exact: each contributes its maximum m, s = sum exp(x - m) and t = sum exp(x - m)(x - m), where
  x = logits / temperature; with M the largest m, a shard's s scales by exp(m - M). All ranks of the group merge the
  same four numbers in the same order, so their results are equal to the last bit.
* logp <= 0 and entropy >= 0 hold in floating point, since s >= 1 on the rank that holds M and t <= 0.

Gradient, with p = exp(x - logZ) and upstream gradients g_logp, g_entropy:
  d/dx = g_logp (1[target] - p) - g_entropy p (log p + H).
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

EXPONENT_FLOOR = -1e4
"""x - m is clamped to this: exp of it is 0 in every dtype, and 0 * floor is 0 where 0 * -inf would be NaN."""
CPU_BLOCK_BYTES = 2 << 20
"""One scratch block on the CPU: two of them stay in a core's cache."""
DEVICE_BLOCK_BYTES = 128 << 20
"""One scratch block on an accelerator: large enough that kernel launches do not dominate."""


def vocab_parallel_logp_entropy(
    logits_TV: Tensor,
    target_T: Tensor,
    *,
    vocab_start: int,
    vocab_stop: int,
    temperature: float | Tensor = 1.0,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-prob of the target and entropy of the distribution softmax(logits / temperature), per token.

    Args:
        logits_TV: this rank's columns. Column 0 is token `vocab_start`; columns from `vocab_stop - vocab_start` on are
            padding: they are not read and their gradient is 0. Logits of -inf are legal.
        target_T: int64 token ids, the same on every rank of `group`.
        vocab_start, vocab_stop: the token ids this rank holds, half open. A rank may hold none (all padding).
        temperature: one positive number, or one per token [T] (no gradient).
        group: the tensor-parallel group; None means this rank holds the whole vocabulary. Every rank of the group
            must call, with the same T.
        inplace_backward: write the gradient over `logits_TV`, which no one may read after backward has begun. The
            write is visible to autograd: another operation that saved the same logits for its backward raises
            instead of using them. Backward may run once.

    Returns:
        (logp_T, entropy_T), float32 (float64 for float64 logits), natural logarithm, differentiable in the logits.
        A target that no rank holds has logp -inf. NaN or +inf in a row's logits makes that row NaN.

    Raises:
        ValueError: shapes or ranges do not fit, temperature is not positive, or `inplace_backward` with logits that
            are a leaf or expanded.
        RuntimeError: backward runs twice with `inplace_backward`.
    """
    _check_arguments(logits_TV, target_T, vocab_start=vocab_start, vocab_stop=vocab_stop, temperature=temperature)
    if inplace_backward and logits_TV.requires_grad and torch.is_grad_enabled():
        _check_overwritable(logits_TV)
    num_valid = max(0, vocab_stop - vocab_start)
    outputs = _VocabParallelLogpEntropy.apply(
        logits_TV, target_T - vocab_start, num_valid, temperature, group, inplace_backward
    )
    return cast(tuple[Tensor, Tensor], outputs)


class _VocabParallelLogpEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        column_T: Tensor,
        num_valid: int,
        temperature: float | Tensor,
        group: dist.ProcessGroup | None,
        inplace_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        logits_TC = logits_TV[:, :num_valid]
        scale = _inverse_temperature(temperature, _statistics_dtype(logits_TV))
        owned_T = (column_T >= 0) & (column_T < num_valid)
        safe_column_T = torch.where(owned_T, column_T, 0)
        shard_T4 = _shard_statistics(logits_TC, safe_column_T, owned_T, scale)
        max_T, sum_T, logp_T, entropy_T = _merge_shards(_gather_shards(shard_T4, group), scale)
        ctx.save_for_backward(logits_TV, safe_column_T, owned_T, max_T, sum_T, entropy_T)
        ctx.num_valid, ctx.scale, ctx.inplace, ctx.consumed = num_valid, scale, inplace_backward, False
        # An unused output's gradient arrives as None, which spares its arithmetic in backward.
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_T: Tensor | None, grad_entropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        unused = (None,) * 5
        if grad_logp_T is None and grad_entropy_T is None:
            return None, *unused
        if ctx.consumed:
            raise RuntimeError(
                "backward of vocab_parallel_logp_entropy ran twice, but the first run wrote the gradient over the "
                "logits; sum the losses before one backward, or pass inplace_backward=False"
            )
        logits_TV, column_T, owned_T, max_T, sum_T, entropy_T = ctx.saved_tensors
        # `detach` shares storage and version counter: the write below counts as a modification for every other
        # operation that saved these logits. Our own saved copy was unpacked just above, before the write.
        out_TV = logits_TV.detach() if ctx.inplace else torch.empty_like(logits_TV)
        ctx.consumed = ctx.inplace
        out_TV[:, ctx.num_valid :].zero_()
        if ctx.num_valid and out_TV.shape[0]:
            coefficients = _gradient_coefficients(grad_logp_T, grad_entropy_T, sum_T, entropy_T, ctx.scale)
            _write_gradient(
                out_TV[:, : ctx.num_valid],
                logits_TV[:, : ctx.num_valid],
                target=(column_T, owned_T),
                max_T=max_T,
                scale=ctx.scale,
                coefficients=coefficients,
            )
        return out_TV, *unused


def _shard_statistics(logits_TC: Tensor, column_T: Tensor, owned_T: Tensor, scale: float | Tensor) -> Tensor:
    """[T, 4]: maximum of the raw logits, s, t (see module docstring), raw logit of the target (-inf elsewhere)."""
    num_rows, num_columns = logits_TC.shape
    dtype = _statistics_dtype(logits_TC)
    shard_T4 = torch.zeros(num_rows, 4, dtype=dtype, device=logits_TC.device)
    shard_T4[:, 0] = shard_T4[:, 3] = -torch.inf
    if num_columns == 0 or num_rows == 0:
        return shard_T4
    target_T = logits_TC.gather(1, column_T[:, None])[:, 0].to(dtype)
    shard_T4[:, 3] = torch.where(owned_T, target_T, -torch.inf)
    shifted, weight = _scratch(logits_TC), _scratch(logits_TC)
    for rows in _blocks(logits_TC):
        block_BC = logits_TC[rows]
        size = block_BC.shape[0]
        max_B = block_BC.amax(1).to(dtype)
        # A row that is -inf throughout this shard (tokens masked out) has no maximum to subtract.
        shift_B = torch.where(max_B == -torch.inf, 0.0, max_B)
        shifted_BC = _shift(block_BC, shift_B, _rows_of(scale, rows), out=shifted[:size])
        weight_BC = torch.exp(shifted_BC, out=weight[:size])
        shard_T4[rows, 0] = max_B
        shard_T4[rows, 1] = weight_BC.sum(1)
        # Not a batched matrix product: slower on the CPU, and TF32 would round its factors on an accelerator.
        shard_T4[rows, 2] = shifted_BC.mul_(weight_BC).sum(1)
    return shard_T4


def _gather_shards(shard_T4: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[W, T, 4]: the one collective. T is the same on all ranks of the group, so T = 0 skips it on all of them."""
    if group is None or group.size() == 1 or shard_T4.shape[0] == 0:
        return shard_T4[None]
    gathered = shard_T4.new_empty(group.size() * shard_T4.shape[0], shard_T4.shape[1])
    # torch 2.13 renamed the collective and warns at the old name, which earlier versions have.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(gathered, shard_T4, group=group)
    return gathered.view(group.size(), *shard_T4.shape)


def _merge_shards(shard_WT4: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(largest raw logit, sum of exp((z - largest) * scale), logp, entropy), each [T], over all shards."""
    max_WT, sum_WT, dot_WT, target_WT = shard_WT4.unbind(-1)
    max_T = max_WT.amax(0)
    # Distance of a shard's maximum to the global one; a shard without a finite logit has -inf, and s = t = 0.
    gap_WT = ((max_WT - max_T) * scale).clamp(min=EXPONENT_FLOOR)
    factor_WT = gap_WT.exp()
    sum_T = (factor_WT * sum_WT).sum(0)
    mean_T = (factor_WT * (dot_WT + gap_WT * sum_WT)).sum(0) / sum_T
    log_sum_T = sum_T.log()
    logp_T = (target_WT.amax(0) - max_T) * scale - log_sum_T
    return max_T, sum_T, logp_T, log_sum_T - mean_T


def _gradient_coefficients(
    grad_logp_T: Tensor | None,
    grad_entropy_T: Tensor | None,
    sum_T: Tensor,
    entropy_T: Tensor,
    scale: float | Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(constant_T, slope_T, target_T): d/dz = exp(d) * (constant + slope * d) + target * 1[target].

    d = (z - M) * scale. The division by the normaliser is here, once per token, not in the loop over the vocabulary.
    slope_T or target_T is None where that output has no gradient.
    """
    constant_T = torch.zeros_like(sum_T)
    slope_T = target_T = None
    if grad_logp_T is not None:
        target_T = grad_logp_T * scale
        constant_T = constant_T - target_T / sum_T
    if grad_entropy_T is not None:
        slope_T = -grad_entropy_T * scale / sum_T
        constant_T = constant_T + slope_T * (entropy_T - sum_T.log())
    return constant_T, slope_T, target_T


def _write_gradient(
    out_TC: Tensor,
    logits_TC: Tensor,
    *,
    target: tuple[Tensor, Tensor],
    max_T: Tensor,
    scale: float | Tensor,
    coefficients: tuple[Tensor, Tensor | None, Tensor | None],
) -> None:
    """The gradient block by block; `out_TC` may be `logits_TC` itself: a block is read before it is written."""
    constant_T, slope_T, target_T = coefficients
    column_T, owned_T = target
    shifted = _scratch(logits_TC)
    weight = _scratch(logits_TC) if slope_T is not None else None
    target_T = None if target_T is None else torch.where(owned_T, target_T, 0.0)
    for rows in _blocks(logits_TC):
        block_BC = logits_TC[rows]
        size = block_BC.shape[0]
        shifted_BC = _shift(block_BC, max_T[rows], _rows_of(scale, rows), out=shifted[:size])
        if slope_T is None or weight is None:
            gradient_BC = shifted_BC.exp_().mul_(constant_T[rows, None])
        else:
            weight_BC = torch.exp(shifted_BC, out=weight[:size])
            gradient_BC = shifted_BC.mul_(slope_T[rows, None]).add_(constant_T[rows, None]).mul_(weight_BC)
        if target_T is not None:
            gradient_BC.scatter_add_(1, column_T[rows, None], target_T[rows, None])
        out_TC[rows].copy_(gradient_BC)


def _shift(block_BC: Tensor, shift_B: Tensor, scale: float | Tensor, *, out: Tensor) -> Tensor:
    """(z - shift) * scale in the statistics dtype, not below EXPONENT_FLOOR. Subtracted first, so no digit is lost."""
    if block_BC.dtype == out.dtype:
        torch.sub(block_BC, shift_B[:, None], out=out)
    else:
        out.copy_(block_BC).sub_(shift_B[:, None])
    if isinstance(scale, Tensor):
        out.mul_(scale[:, None])
    elif scale != 1.0:
        out.mul_(scale)
    return out.clamp_(min=EXPONENT_FLOOR)


def _statistics_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _inverse_temperature(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return 1.0 / temperature.detach().to(dtype) if isinstance(temperature, Tensor) else 1.0 / temperature


def _rows_of(scale: float | Tensor, rows: slice) -> float | Tensor:
    return scale[rows] if isinstance(scale, Tensor) else scale


def _block_rows(logits_TC: Tensor) -> int:
    budget = CPU_BLOCK_BYTES if logits_TC.device.type == "cpu" else DEVICE_BLOCK_BYTES
    row_bytes = logits_TC.shape[1] * _statistics_dtype(logits_TC).itemsize
    return max(1, min(logits_TC.shape[0], budget // row_bytes))


def _blocks(logits_TC: Tensor) -> Iterator[slice]:
    step = _block_rows(logits_TC)
    return (slice(start, start + step) for start in range(0, logits_TC.shape[0], step))


def _scratch(logits_TC: Tensor) -> Tensor:
    shape = (_block_rows(logits_TC), logits_TC.shape[1])
    return torch.empty(shape, dtype=_statistics_dtype(logits_TC), device=logits_TC.device)


def _check_arguments(
    logits_TV: Tensor, target_T: Tensor, *, vocab_start: int, vocab_stop: int, temperature: float | Tensor
) -> None:
    if logits_TV.ndim != 2 or target_T.shape != logits_TV.shape[:1] or target_T.dtype != torch.int64:
        raise ValueError(
            f"expected logits [tokens, vocabulary columns] and int64 targets [tokens], found logits "
            f"{tuple(logits_TV.shape)} and {target_T.dtype} targets {tuple(target_T.shape)}"
        )
    if vocab_start < 0 or vocab_stop - vocab_start > logits_TV.shape[1]:
        raise ValueError(
            f"token ids {vocab_start} to {vocab_stop} do not fit in {logits_TV.shape[1]} logit columns; pass the ids "
            "this rank's columns hold, without padding"
        )
    if isinstance(temperature, Tensor):
        if temperature.shape != target_T.shape:
            raise ValueError(
                f"temperature has shape {tuple(temperature.shape)}; expected one number or one per token "
                f"{tuple(target_T.shape)}"
            )
    elif not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")


def _check_overwritable(logits_TV: Tensor) -> None:
    if logits_TV.is_leaf:
        raise ValueError(
            "inplace_backward would write the gradient over a leaf tensor's own values; pass "
            "inplace_backward=False, or logits that an operation produced"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(logits_TV.stride(), logits_TV.shape, strict=True)):
        raise ValueError(
            f"inplace_backward needs logits whose elements have memory of their own, found expanded logits with "
            f"strides {logits_TV.stride()}; pass inplace_backward=False or a contiguous tensor"
        )
