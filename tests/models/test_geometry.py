"""What divides what: by hand, and that everything that asks gets the same answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.geometry import (
    Side,
    check_tensor_split,
    layers_per_chunk,
    padded_vocab,
    policy_splits,
    stage_counts,
    tensor_problems,
    tensor_share,
    tensor_sizes,
)
from megarl.models.layout import layout_of
from megarl.models.serving import engine_boxes, engine_weight_elements
from megarl.models.shape import ModelError
from megarl.models.table import family_table, hf_tensors, list_parameters
from tests.models.shapes import make_shape, real_shape

SIDES: tuple[Side, ...] = ("policy", "engine")


def test_the_share_of_a_rank_by_hand() -> None:
    """Llama 3 70B: 64 query and 8 key-value heads of 128, an MLP of 28672 rows, 128256 rows of vocabulary."""
    shape = real_shape("llama-3-70b")
    for side in SIDES:
        share = tensor_share(shape, 8, side=side)
        assert (share.size, share.heads, share.kv_heads, share.kv_sharing) == (8, 8, 1, 1)
        assert (share.qkv_rows, share.ffn_rows, share.vocab_rows) == (10 * 128, 3584, 16032)
        # Two of 16 ranks use one key-value head; Megatron gathers the projection that they cut.
        share = tensor_share(shape, 16, side=side)
        assert (share.heads, share.kv_heads, share.kv_sharing, share.qkv_rows) == (4, 1, 2, 80 * 128)


def test_each_side_pads_the_vocabulary_its_own_way() -> None:
    """152064 = 64 x 2376. For 7 ranks of the policy that becomes 56 x 2716; vLLM pads to 64 whatever their number."""
    shape = real_shape("qwen2.5-7b")
    assert shape.vocab_size == 152064
    assert [padded_vocab(shape, size, side="policy") for size in (1, 7, 49)] == [152064, 152096, 152096]
    assert [padded_vocab(shape, size, side="engine") for size in (1, 7, 49)] == [152064] * 3
    assert [padded_vocab(make_shape(), 1, side=side) for side in SIDES] == [16, 64]


def test_problems_are_of_one_side_or_of_both() -> None:
    shape = make_shape()  # 4 heads in 2 groups of head_dim 3, 8 MLP rows, 11 rows of vocabulary
    three = [
        "4 attention heads are not a multiple of it",
        "2 key-value heads are neither a multiple nor a divisor of it",
        "8 rows of the MLP are not a multiple of it",
    ]
    assert tensor_problems(shape, 3, side="policy") == three  # 24 rows of the fused QKV divide
    assert tensor_problems(shape, 3, side="engine") == [
        *three,
        "64 rows of the padded vocabulary are not a multiple of it",
    ]
    fused = make_shape(num_heads=8, num_kv_heads=1, head_dim=2, ffn_size=16)
    assert tensor_problems(fused, 8, side="policy") == ["20 rows of the fused QKV are not a multiple of it"]
    assert tensor_problems(fused, 8, side="engine") == []
    with pytest.raises(ModelError, match=r"^tensor size 8 does not split this model: 20 rows .* Choose another\.$"):
        check_tensor_split(fused, 8, side="policy")
    with pytest.raises(ModelError, match=r"^an engine of tensor size 3 does not split this model: 4 attention heads"):
        tensor_share(shape, 3, side="engine")


def test_sizes_that_work() -> None:
    shape = real_shape("qwen2.5-7b")  # 28 heads, 4 key-value heads, 28 layers
    assert tensor_sizes(shape, at_most=32, side="policy") == [1, 2, 4]
    assert stage_counts(shape) == [1, 2, 4, 7, 14, 28]
    assert policy_splits(shape, tensor_size=4, pipeline_size=7)
    assert not policy_splits(shape, tensor_size=4, pipeline_size=3)
    assert not policy_splits(shape, tensor_size=7, pipeline_size=7)
    assert not policy_splits(shape, tensor_size=4, pipeline_size=56)


def test_layers_of_a_chunk() -> None:
    shape = make_shape(num_layers=24)
    assert [layers_per_chunk(shape, 4), layers_per_chunk(shape, 4, 3), layers_per_chunk(shape, 1)] == [6, 2, 24]
    for arguments, text in (
        ((5,), "24 layers are not a multiple of pipeline 5 x virtual 1 = 5; choose a divisor of 24"),
        ((4, 5), "24 layers are not a multiple of pipeline 4 x virtual 5 = 20"),
        ((1, 2), "expected 1 virtual chunk with a single pipeline stage, found 2"),
        ((2, 0), "expected at least 1 virtual pipeline chunk, found 0"),
    ):
        with pytest.raises(ModelError, match=text):
            layers_per_chunk(shape, *arguments)


@settings(deadline=None, max_examples=150)
@given(
    kv_heads=st.sampled_from([1, 2, 3, 4]),
    group=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([2, 4, 6]),
    ffn=st.integers(1, 12),
    vocabulary=st.integers(1, 200),
    layers=st.integers(1, 6),
    tensor=st.integers(1, 6),
    pipeline=st.integers(1, 6),
)
def test_what_splits_is_what_can_be_laid_out(
    kv_heads, group, head_dim, ffn, vocabulary, layers, tensor, pipeline
) -> None:
    """Problems are named exactly where the layout, or an engine's boxes, are refused; else a share is what is held."""
    shape = make_shape(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=ffn,
        vocab_size=vocabulary,
        num_layers=layers,
    )
    position = {"tensor_rank": tensor - 1, "pipeline_rank": pipeline - 1}
    if policy_splits(shape, tensor_size=tensor, pipeline_size=pipeline):
        layout = layout_of(shape, tensor_size=tensor, pipeline_size=pipeline, **position)
        share = tensor_share(shape, tensor, side="policy")
        shapes = {entry.name: entry.shape for entry in list_parameters(shape, layout)}
        assert shapes["output_layer.weight"][0] == share.vocab_rows
        assert shapes["decoder.layers.0.mlp.linear_fc1.weight"][0] == 2 * share.ffn_rows
        assert shapes["decoder.layers.0.self_attention.linear_proj.weight"][1] == share.heads * head_dim
        assert len(layout.layers[0]) == layers_per_chunk(shape, pipeline)
    else:
        with pytest.raises(ModelError):
            layout_of(shape, tensor_size=tensor, pipeline_size=pipeline, **position)
    if tensor_problems(shape, tensor, side="engine"):
        with pytest.raises(ModelError):
            engine_boxes(shape, tensor_rank=0, tensor_size=tensor)
        with pytest.raises(ModelError):
            engine_weight_elements(shape, tensor)
    else:
        share = tensor_share(shape, tensor, side="engine")
        boxes = {box.tensor: box for box in engine_boxes(shape, tensor_rank=0, tensor_size=tensor)}
        assert boxes["model.layers.0.self_attn.k_proj.weight"].shape[0] == share.kv_heads * head_dim
        assert boxes["model.embed_tokens.weight"].shape[0] == min(vocabulary, share.vocab_rows)


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen2.5-7b"])
def test_a_family_cuts_every_tensor_that_it_has(name: str) -> None:
    """Norms are whole; everything else is cut along something."""
    shape = real_shape(name)
    family = family_table(shape)
    cuts = {tensor: family.engine_cut(tensor) for tensor in hf_tensors(shape)}
    assert {tensor for tensor, cut in cuts.items() if cut == "whole"} == {name for name in cuts if "norm" in name}
    assert {cuts["model.embed_tokens.weight"], cuts["lm_head.weight"]} == {"vocabulary"}
