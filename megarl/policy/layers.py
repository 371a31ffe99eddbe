"""Layers that Megatron-core's local spec lacks: an RMSNorm that knows sequence parallelism, rotation and attention of
packed rows, linear layers for CPUs without products of bfloat16.

S = packed tokens of a micro-batch, N = query heads, G = key/value heads (both of this tensor rank), D = head dimension.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megarl.parallel.attention_choice import FLASH_DTYPES
from megarl.parallel.linear import linear
from megarl.parallel.packed_attention import attend_packed
from megarl.parallel.rotary import Rotation, rotate


class RmsNorm(nn.Module):
    """x / rms(x) * weight, statistics in float32.

    Under sequence parallelism each tensor rank sees its share of the tokens, so the weight's gradient must be summed
    over the tensor ranks; Megatron does that for parameters marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class _Widened:
    """Of a parallel linear layer: its product by `parallel.linear`, its collectives as Megatron's mappings."""

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **_: Any,
    ) -> Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        product = linear(input, weight)
        return product if bias is None else product + bias


class WidenedColumnLinear(_Widened, ColumnParallelLinear):
    """For CPUs without products of bfloat16."""


class WidenedRowLinear(_Widened, RowParallelLinear):
    """For CPUs without products of bfloat16."""


@dataclass
class PackedSequences(PackedSeqParams):
    """What a packed micro-batch's attention is told, in every layer."""

    lengths: tuple[int, ...] = ()
    """Of the sequences."""
    rotation: Rotation | None = None
    """Of queries and keys, where `PackedAttention` turns them; Transformer Engine's layers turn them before it."""


class PackedAttention(nn.Module):
    """Rotation, and causal attention within each sequence of a packed micro-batch.

    CUDA: torch's variable-length flash attention, one call, on the kernels that `parallel.attention_choice` found. It
    takes bfloat16 and float16; float32 on CUDA and every dtype on the CPU go through `parallel.packed_attention`.
    Nothing of size S x S is ever made.
    """

    def __init__(self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        if config.attention_dropout:
            raise ValueError(f"attention_dropout {config.attention_dropout}: a policy is trained without dropout")
        assert config.kv_channels is not None
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        attn_mask_type: Any = None,  # noqa: ARG002
        attention_bias: Tensor | None = None,  # noqa: ARG002
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [S, N, D], key and value [S, G, D] -> [S, N * D]."""
        if not isinstance(packed_seq_params, PackedSequences) or packed_seq_params.rotation is None:
            raise ValueError("PackedAttention takes PackedSequences with a rotation only")
        query, key = rotate(query, packed_seq_params.rotation), rotate(key, packed_seq_params.rotation)
        if query.is_cuda and query.dtype in FLASH_DTYPES:
            attended = self._varlen(query, key, value, packed_seq_params)
        else:
            attended = attend_packed(query, key, value, packed_seq_params.lengths, scale=self.scale)
        return attended.reshape(query.shape[0], -1)

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        longest = packed.max_seqlen_q
        result = varlen_attn(
            query,
            key,
            value,
            packed.cu_seqlens_q,
            packed.cu_seqlens_kv,
            longest,
            longest,
            scale=self.scale,
            window_size=(-1, 0),
            **_grouped_heads(query, key),
        )
        assert isinstance(result, Tensor)
        return result


@functools.cache
def _varlen_names_grouped_heads() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _grouped_heads(query: Tensor, key: Tensor) -> dict[str, Any]:
    """What says that key heads serve several query heads: torch 2.11's kernel takes them without being told."""
    return {"enable_gqa": query.shape[1] != key.shape[1]} if _varlen_names_grouped_heads() else {}
