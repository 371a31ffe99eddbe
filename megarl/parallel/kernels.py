"""Which kernels compute: blocked torch on the CPU, Triton on CUDA. Decided here, by device, for both cores.

There is no fallback: a device without kernels is an error, and on CUDA a missing Triton is Triton's own ImportError.
Triton is imported when CUDA tensors first arrive, never by importing this package.
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from megarl.parallel.token_statistics import TokenGradient


class VocabKernels(Protocol):
    """From logits. T = tokens, C = valid columns, V = columns with padding, K = 4 or 6 (token_statistics.py)."""

    @staticmethod
    def shard_statistics(
        logits_TC: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool
    ) -> Tensor:
        """[T, K] of this shard; reads the logits once. `column_T` is the target's column, -1 where not held."""

    @staticmethod
    def write_gradient(
        out_TV: Tensor, logits_TV: Tensor, column_T: Tensor, *, num_valid: int, gradient: TokenGradient
    ) -> None:
        """The logits' gradient, 0 in the columns from `num_valid` on. `out_TV` may be `logits_TV` itself."""


class FusedLinearKernels(Protocol):
    """From hidden states and output weight. H = hidden size; no [T, C] tensor exists."""

    @staticmethod
    def shard_statistics(
        hidden_TH: Tensor, weight_CH: Tensor, column_T: Tensor, *, scale: float | Tensor, with_expected_q: bool
    ) -> Tensor:
        """[T, K] of this shard."""

    @staticmethod
    def write_gradients(
        grad_hidden_TH: Tensor | None,
        grad_weight_CH: Tensor | None,
        hidden_TH: Tensor,
        weight_CH: Tensor,
        column_T: Tensor,
        *,
        gradient: TokenGradient,
    ) -> None:
        """Overwrite the gradients that are not None; `grad_hidden_TH` is this shard's part of the sum over ranks."""


def vocab_kernels(device: torch.device) -> VocabKernels:
    """Kernels that start from logits on `device`; ValueError for a device without any."""
    match device.type:
        case "cpu":
            from megarl.parallel import vocab_blocked

            return cast(VocabKernels, vocab_blocked)
        case "cuda":
            from megarl.parallel import vocab_triton

            return cast(VocabKernels, vocab_triton)
    raise ValueError(_no_kernels(device))


def fused_linear_kernels(device: torch.device) -> FusedLinearKernels:
    """Kernels that start from hidden states on `device`; ValueError for a device without any."""
    match device.type:
        case "cpu":
            from megarl.parallel import fused_linear_blocked

            return cast(FusedLinearKernels, fused_linear_blocked)
        case "cuda":
            from megarl.parallel import fused_linear_triton

            return cast(FusedLinearKernels, fused_linear_triton)
    raise ValueError(_no_kernels(device))


def _no_kernels(device: torch.device) -> str:
    return f"log-prob and entropy have kernels for cpu and cuda tensors, found tensors on {device}"
