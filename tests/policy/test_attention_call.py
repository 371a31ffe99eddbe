"""The variable-length attention of CUDA is called as the torch at hand defines it (2.11 has no `enable_gqa`)."""

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig

from megarl.policy.layers import PackedAttention


@pytest.mark.parametrize("groups", [4, 2])
def test_the_call_fits_this_torch(groups: int) -> None:
    """On the meta device: names, shapes and types are checked, nothing is computed."""
    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=groups, attention_dropout=0.0
    )
    query = torch.empty(6, 4, 8, dtype=torch.bfloat16, device="meta")
    key = torch.empty(6, groups, 8, dtype=torch.bfloat16, device="meta")
    bounds = torch.empty(3, dtype=torch.int32, device="meta")
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=4, max_seqlen_kv=4
    )
    assert PackedAttention(config)._varlen(query, key, key, packed).shape == query.shape
