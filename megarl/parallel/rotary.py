"""Rotary position embeddings of packed rows: one table for all layers of a pass, by the positions of its tokens.

S = packed tokens, N = heads, D = head dimension. Pairs are the two halves of a head (GPT-NeoX's order, as Llama and
Qwen have it). Nothing waits for the device, and the work does not depend on the number of sequences.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """By which angles the rows of a packed stream turn."""

    cos: Tensor
    """[S, 1, D / 2], in the dtype of what is turned."""
    sin: Tensor


def rotation_at(position_S: Tensor, inverse_frequencies: Tensor, dtype: torch.dtype) -> Rotation:
    """The angles at `position_S` [S], for frequencies [D / 2] float32 on the same device; rounded once, to `dtype`."""
    angles = (position_S.float()[:, None] * inverse_frequencies)[:, None]
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """`heads` [S, N, D] turned, in their dtype; differentiable with respect to them."""
    return _Rotate.apply(heads, rotation.cos, rotation.sin)


class _Rotate(torch.autograd.Function):
    """Keeps the table only. Its transpose is the rotation back."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(heads, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    out = torch.empty_like(heads, memory_format=torch.contiguous_format)
    low, high = out.chunk(2, -1)
    torch.mul(first, cos, out=low).sub_(second * sin)
    torch.mul(second, cos, out=high).add_(first * sin)
    return out
