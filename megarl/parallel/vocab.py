"""Log-prob, entropy and expected q of each token from vocabulary-parallel logits.

T = tokens, V = this rank's logit columns, the last of which may be padding.

What is true:
* Forward reads the logits once and makes one all-gather of four numbers per token (six with expected q); backward
  reads and writes them once and makes no collective. What is saved for backward is the logits themselves and
  per-token scalars: no softmax.
* With `inplace_backward` the gradient is written over the logits, so beside them only blocks of scratch rows exist.
* Statistics are float32 (float64 for float64 logits) whatever the dtype of the logits, without a float32 copy of them.
* The formulas of the merge and of the gradient are in token_statistics.py; the kernels are chosen in kernels.py.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megarl.parallel.kernels import vocab_kernels
from megarl.parallel.token_statistics import (
    TokenDistribution,
    inverse_temperature,
    locate_targets,
    merge_over_ranks,
    statistics_dtype,
    token_gradient,
)


def vocab_parallel_logp_entropy(
    logits_TV: Tensor,
    target_T: Tensor,
    *,
    vocab_start: int,
    vocab_stop: int,
    temperature: float | Tensor = 1.0,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = True,
    with_expected_q: bool = False,
) -> TokenDistribution:
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
        with_expected_q: also return N = sum p^2 (log p + H), the same argument on every rank.

    Returns:
        logp_T and entropy_T, float32 (float64 for float64 logits), natural logarithm, differentiable in the logits,
        and expected_q_T without gradient (None unless asked for). A target that no rank holds has logp -inf. NaN or
        +inf in a row's logits makes that row NaN.

    Raises:
        ValueError: shapes or ranges do not fit, temperature is not positive, `inplace_backward` with logits that
            are a leaf or expanded, or logits on a device without kernels.
        RuntimeError: backward runs twice with `inplace_backward`.
    """
    if logits_TV.ndim != 2:
        raise ValueError(f"expected logits [tokens, vocabulary columns], found {tuple(logits_TV.shape)}")
    column_T, num_valid = locate_targets(
        target_T,
        num_tokens=logits_TV.shape[0],
        num_columns=logits_TV.shape[1],
        vocab_start=vocab_start,
        vocab_stop=vocab_stop,
        temperature=temperature,
    )
    if inplace_backward and logits_TV.requires_grad and torch.is_grad_enabled():
        _check_overwritable(logits_TV)
    outputs = _VocabParallelLogpEntropy.apply(
        logits_TV, column_T, num_valid, temperature, group, inplace_backward, with_expected_q
    )
    return TokenDistribution(*outputs)


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
        with_expected_q: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale = inverse_temperature(temperature, statistics_dtype(logits_TV.dtype))
        shard_TK = vocab_kernels(logits_TV.device).shard_statistics(
            logits_TV[:, :num_valid], column_T, scale=scale, with_expected_q=with_expected_q
        )
        merged = merge_over_ranks(shard_TK, scale, group)
        ctx.save_for_backward(logits_TV, column_T, merged.max_T, merged.sum_T, merged.entropy_T)
        ctx.num_valid, ctx.scale, ctx.inplace, ctx.consumed = num_valid, scale, inplace_backward, False
        # An unused output's gradient arrives as None, which spares its arithmetic in backward.
        ctx.set_materialize_grads(False)
        if merged.expected_q_T is not None:
            ctx.mark_non_differentiable(merged.expected_q_T)
        return merged.logp_T, merged.entropy_T, merged.expected_q_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp_T: Tensor | None, grad_entropy_T: Tensor | None, _grad_expected_q_T: None
    ) -> tuple[Tensor | None, ...]:
        unused = (None,) * 6
        if grad_logp_T is None and grad_entropy_T is None:
            return None, *unused
        if ctx.consumed:
            raise RuntimeError(
                "backward of vocab_parallel_logp_entropy ran twice, but the first run wrote the gradient over the "
                "logits; sum the losses before one backward, or pass inplace_backward=False"
            )
        logits_TV, column_T, max_T, sum_T, entropy_T = ctx.saved_tensors
        gradient = token_gradient(
            grad_logp_T, grad_entropy_T, max_T=max_T, sum_T=sum_T, entropy_T=entropy_T, scale=ctx.scale
        )
        # `detach` shares storage and version counter: the write below counts as a modification for every other
        # operation that saved these logits. Our own saved copy was unpacked just above, before the write.
        out_TV = logits_TV.detach() if ctx.inplace else torch.empty_like(logits_TV)
        ctx.consumed = ctx.inplace
        vocab_kernels(logits_TV.device).write_gradient(
            out_TV, logits_TV, column_T, num_valid=ctx.num_valid, gradient=gradient
        )
        return out_TV, *unused


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
