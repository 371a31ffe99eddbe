"""Log-prob, entropy and expected q of each token from hidden states and the output weight, without the logits.

T = tokens, H = hidden size, V = this rank's rows of the output weight, the last of which may be padding.

What is true:
* No [T, V] tensor exists, forward or backward: blocks of logits are formed, reduced to per-token statistics and
  dropped; backward forms them again. That is 1 matrix product forward and 3 backward, against 1 and 2 with logits.
* One all-gather of four numbers per token forward (six with expected q), none backward.
* Saved for backward: the two inputs and per-token scalars.
* The gradient of the hidden states is this rank's part of the sum over the tensor-parallel group. It is the caller's
  mapping of the hidden states that sums it: with Megatron, `copy_to_tensor_model_parallel_region` (all-reduce in its
  backward), or with sequence parallelism `gather_from_sequence_parallel_region` (reduce-scatter).
* The gradient of the weight is a new tensor that autograd adds to others, so a tied embedding works.
* Both sums are float32 (float64 for float64 inputs) and rounded once to the input's dtype.
* The formulas of the merge and of the gradient are in token_statistics.py; the kernels are chosen in kernels.py.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megarl.parallel.kernels import fused_linear_kernels
from megarl.parallel.token_statistics import (
    TokenDistribution,
    inverse_temperature,
    locate_targets,
    merge_over_ranks,
    statistics_dtype,
    token_gradient,
)


def fused_linear_logp_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    target_T: Tensor,
    *,
    vocab_start: int,
    vocab_stop: int,
    temperature: float | Tensor = 1.0,
    group: dist.ProcessGroup | None = None,
    with_expected_q: bool = False,
) -> TokenDistribution:
    """Log-prob of the target and entropy of softmax(hidden @ weight.T / temperature), per token.

    Args:
        hidden_TH: hidden states of the tokens, the same on every rank of `group`.
        weight_VH: this rank's rows of the output weight, in the dtype of the hidden states. Row 0 is token
            `vocab_start`; rows from `vocab_stop - vocab_start` on are padding: not read, gradient 0.
        target_T: int64 token ids, the same on every rank of `group`.
        vocab_start, vocab_stop: the token ids this rank holds, half open. A rank may hold none (all padding).
        temperature: one positive number, or one per token [T] (no gradient).
        group: the tensor-parallel group; None means this rank holds the whole vocabulary. Every rank of the group
            must call, with the same T.
        with_expected_q: also return N = sum p^2 (log p + H), the same argument on every rank.

    Returns:
        logp_T and entropy_T, float32 (float64 for float64 inputs), natural logarithm, differentiable in the hidden
        states (this rank's part, see module docstring) and the weight, and expected_q_T without gradient (None unless
        asked for). A target that no rank holds has logp -inf.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not fit, temperature is not positive, or tensors on a device
            without kernels.
    """
    _check_operands(hidden_TH, weight_VH)
    column_T, num_valid = locate_targets(
        target_T,
        num_tokens=hidden_TH.shape[0],
        num_columns=weight_VH.shape[0],
        vocab_start=vocab_start,
        vocab_stop=vocab_stop,
        temperature=temperature,
    )
    outputs = _FusedLinearLogpEntropy.apply(
        hidden_TH, weight_VH, column_T, num_valid, temperature, group, with_expected_q
    )
    return TokenDistribution(*outputs)


class _FusedLinearLogpEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        column_T: Tensor,
        num_valid: int,
        temperature: float | Tensor,
        group: dist.ProcessGroup | None,
        with_expected_q: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale = inverse_temperature(temperature, statistics_dtype(hidden_TH.dtype))
        shard_TK = fused_linear_kernels(hidden_TH.device).shard_statistics(
            hidden_TH, weight_VH[:num_valid], column_T, scale=scale, with_expected_q=with_expected_q
        )
        merged = merge_over_ranks(shard_TK, scale, group)
        ctx.save_for_backward(hidden_TH, weight_VH, column_T, merged.max_T, merged.sum_T, merged.entropy_T)
        ctx.num_valid, ctx.scale = num_valid, scale
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
        unused = (None,) * 5
        if grad_logp_T is None and grad_entropy_T is None:
            return None, None, *unused
        hidden_TH, weight_VH, column_T, max_T, sum_T, entropy_T = ctx.saved_tensors
        gradient = token_gradient(
            grad_logp_T, grad_entropy_T, max_T=max_T, sum_T=sum_T, entropy_T=entropy_T, scale=ctx.scale
        )
        grad_hidden_TH = torch.empty_like(hidden_TH) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        if grad_weight_VH is not None:
            grad_weight_VH[ctx.num_valid :].zero_()
        fused_linear_kernels(hidden_TH.device).write_gradients(
            grad_hidden_TH,
            None if grad_weight_VH is None else grad_weight_VH[: ctx.num_valid],
            hidden_TH,
            weight_VH[: ctx.num_valid],
            column_T,
            gradient=gradient,
        )
        return grad_hidden_TH, grad_weight_VH, *unused


def _check_operands(hidden_TH: Tensor, weight_VH: Tensor) -> None:
    if hidden_TH.ndim != 2 or weight_VH.ndim != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            "expected hidden states [tokens, hidden size] and output weight [vocabulary rows, hidden size], found "
            f"{tuple(hidden_TH.shape)} and {tuple(weight_VH.shape)}"
        )
    if hidden_TH.dtype != weight_VH.dtype or hidden_TH.device != weight_VH.device:
        raise ValueError(
            f"hidden states are {hidden_TH.dtype} on {hidden_TH.device}, the output weight is {weight_VH.dtype} on "
            f"{weight_VH.device}; convert one to the other's dtype and device"
        )
