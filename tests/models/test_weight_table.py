"""The weight table: hand-written cases, and its invariant over random models and layouts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.geometry import padded_vocab_size
from megarl.models.layout import RankLayout, layout_of
from megarl.models.shape import ModelError, ModelShape
from megarl.models.shards import fill_parameter
from megarl.models.table import Box, Piece, hf_tensors, list_parameters
from tests.models.shapes import make_shape


def rank_layouts(shape: ModelShape, *, tensor: int, pipeline: int, virtual: int) -> list[RankLayout]:
    return [
        layout_of(
            shape,
            tensor_rank=tensor_rank,
            tensor_size=tensor,
            pipeline_rank=pipeline_rank,
            pipeline_size=pipeline,
            virtual=virtual,
        )
        for pipeline_rank in range(pipeline)
        for tensor_rank in range(tensor)
    ]


def entries_of(shape: ModelShape, **layout):
    defaults = {"tensor_rank": 0, "tensor_size": 1, "pipeline_rank": 0, "pipeline_size": 1}
    return {entry.name: entry for entry in list_parameters(shape, layout_of(shape, **{**defaults, **layout}))}


def rows(piece: Piece) -> tuple[str, int, int, int]:
    """(last words of the tensor's name, first row, end row, first local row)."""
    return ".".join(piece.box.tensor.split(".")[-2:]), piece.box.start[0], piece.box.stop[0], piece.start[0]


def test_qkv_rows_are_grouped_by_key_value_head():
    entry = entries_of(make_shape())["decoder.layers.1.self_attention.linear_qkv.weight"]
    assert entry.shape == (24, 6)
    assert [rows(piece) for piece in entry.pieces] == [
        ("q_proj.weight", 0, 6, 0),
        ("k_proj.weight", 0, 3, 6),
        ("v_proj.weight", 0, 3, 9),
        ("q_proj.weight", 6, 12, 12),
        ("k_proj.weight", 3, 6, 18),
        ("v_proj.weight", 3, 6, 21),
    ]
    assert all(piece.box.tensor.startswith("model.layers.1.self_attn.") for piece in entry.pieces)


def test_qkv_with_fewer_kv_heads_than_ranks_cuts_groups_and_even_heads():
    """(4 + 2 * 1) heads * 2 rows over 4 ranks: 3 rows each of q0 q0 q1 q1 q2 q2 q3 q3 k k v v."""
    shape = make_shape(num_kv_heads=1, head_dim=2, qkv_bias=True, family="qwen2")
    expected = [
        [("q_proj.bias", 0, 3, 0)],
        [("q_proj.bias", 3, 6, 0)],
        [("q_proj.bias", 6, 8, 0), ("k_proj.bias", 0, 1, 2)],
        [("k_proj.bias", 1, 2, 0), ("v_proj.bias", 0, 2, 1)],
    ]
    for tensor_rank in range(4):
        entries = entries_of(shape, tensor_rank=tensor_rank, tensor_size=4)
        bias = entries["decoder.layers.0.self_attention.linear_qkv.bias"]
        assert [rows(piece) for piece in bias.pieces] == expected[tensor_rank]


def test_fc1_holds_this_ranks_gate_then_its_up():
    entry = entries_of(make_shape(), tensor_rank=1, tensor_size=2)["decoder.layers.0.mlp.linear_fc1.weight"]
    assert entry.shape == (8, 6)
    assert [rows(piece) for piece in entry.pieces] == [("gate_proj.weight", 4, 8, 0), ("up_proj.weight", 4, 8, 4)]


def test_row_parallel_weights_are_split_by_column():
    entries = entries_of(make_shape(), tensor_rank=1, tensor_size=2)
    projection = entries["decoder.layers.0.self_attention.linear_proj.weight"]
    assert projection.shape == (6, 6)
    assert projection.pieces == (Piece(Box("model.layers.0.self_attn.o_proj.weight", (0, 6), (6, 12)), (0, 0)),)
    fc2 = entries["decoder.layers.0.mlp.linear_fc2.weight"]
    assert fc2.shape == (6, 4)
    assert fc2.pieces == (Piece(Box("model.layers.0.mlp.down_proj.weight", (0, 4), (6, 8)), (0, 0)),)


def test_vocabulary_padding_lies_at_the_end_and_belongs_to_no_tensor():
    # 11 rows over 2 ranks: padded to 16, rank 1 holds rows 8-10 and 5 rows of padding.
    entry = entries_of(make_shape(), tensor_rank=1, tensor_size=2)["embedding.word_embeddings.weight"]
    assert entry.shape == (8, 6)
    assert [rows(piece) for piece in entry.pieces] == [("embed_tokens.weight", 8, 11, 0)]
    assert entry.num_padding == 5 * 6


def test_a_rank_of_padding_only_has_no_pieces():
    entry = entries_of(make_shape(), tensor_rank=3, tensor_size=4)["output_layer.weight"]
    assert (entry.pieces, entry.num_padding) == ((), 8 * 6)


def test_tied_output_is_a_copy_of_the_embedding_on_another_stage():
    shape = make_shape(tied_embeddings=True)
    assert "lm_head.weight" not in hf_tensors(shape)
    assert "output_layer.weight" not in entries_of(shape)
    first, last = (entries_of(shape, pipeline_rank=rank, pipeline_size=2) for rank in (0, 1))
    assert "output_layer.weight" not in first
    assert last["output_layer.weight"].pieces == first["embedding.word_embeddings.weight"].pieces
    assert last["output_layer.weight"].tied
    assert not first["embedding.word_embeddings.weight"].tied


def test_virtual_stages_interleave_layers():
    """Megatron's own example: 8 layers, 2 stages, 2 chunks: [0 1] [4 5] and [2 3] [6 7]."""
    shape = make_shape(num_layers=8)
    first, last = rank_layouts(shape, tensor=1, pipeline=2, virtual=2)
    assert [list(chunk) for chunk in first.layers] == [[0, 1], [4, 5]]
    assert [list(chunk) for chunk in last.layers] == [[2, 3], [6, 7]]
    held = {(entry.chunk, entry.name): entry for entry in list_parameters(shape, last)}
    norm = held[1, "decoder.layers.1.input_layernorm.weight"]
    assert norm.pieces[0].box.tensor == "model.layers.7.input_layernorm.weight"
    assert (1, "output_layer.weight") in held
    assert (0, "output_layer.weight") not in held
    assert {entry.chunk for entry in list_parameters(shape, first) if "embedding" in entry.name} == {0}


def test_transformer_engine_spec_moves_the_norms_into_the_linears():
    shape = make_shape(num_layers=1)
    layout = layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=0, pipeline_size=1)
    local = {entry.name: entry.pieces for entry in list_parameters(shape, layout)}
    te = {entry.name: entry.pieces for entry in list_parameters(shape, layout, spec="te")}
    moved = {
        "decoder.layers.0.input_layernorm.weight": "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.pre_mlp_layernorm.weight": "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
    }
    assert {moved.get(name, name): pieces for name, pieces in local.items()} == te


@pytest.mark.parametrize(
    ("vocab_size", "tensor", "padded"),
    [(128256, 8, 128256), (151936, 16, 151936), (49152, 8, 49152), (11, 1, 16), (16, 2, 16), (17, 2, 32)],
)
def test_padded_vocab_size(vocab_size, tensor, padded):
    assert padded_vocab_size(vocab_size, tensor) == padded


def test_padded_vocab_size_with_megatrons_multiple():
    assert padded_vocab_size(128256, 8, multiple=128) == 129024


@pytest.mark.parametrize(
    ("changes", "layout", "words"),
    [
        ({}, {"tensor_size": 8}, ["4 attention heads"]),
        ({"num_heads": 12, "num_kv_heads": 4, "ffn_size": 7}, {"tensor_size": 3}, ["4 key-value heads", "7 rows"]),
        ({}, {"pipeline_size": 3}, ["2 layers", "pipeline 3"]),
        ({}, {"pipeline_size": 2, "virtual": 2}, ["virtual 2 = 4"]),
        ({}, {"virtual": 2}, ["single pipeline stage"]),
        ({}, {"tensor_rank": 1}, ["tensor rank from 0 to 0, found 1"]),
    ],
)
def test_layouts_that_do_not_fit_say_which_numbers(changes, layout, words):
    with pytest.raises(ModelError) as error:
        entries_of(make_shape(**changes), **layout)
    assert all(word in str(error.value) for word in words)


@st.composite
def models_and_layouts(draw):
    tensor, pipeline = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    virtual = draw(st.integers(1, 2)) if pipeline > 1 else 1
    kv_heads = draw(st.sampled_from([n for n in range(1, 9) if n % tensor == 0 or tensor % n == 0]))
    heads = math.lcm(kv_heads, tensor) * draw(st.integers(1, 2))
    family = draw(st.sampled_from(["llama", "qwen2"]))
    shape = make_shape(
        family=family,
        num_layers=pipeline * virtual * draw(st.integers(1, 2)),
        hidden_size=draw(st.integers(1, 5)),
        ffn_size=tensor * draw(st.integers(1, 3)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        # Megatron needs the fused rows to split; a head_dim of tensor always does, smaller ones sometimes.
        head_dim=draw(st.sampled_from([d for d in range(1, tensor + 1) if (heads + 2 * kv_heads) * d % tensor == 0])),
        vocab_size=draw(st.integers(1, 40)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=family == "qwen2",
    )
    return shape, tensor, pipeline, virtual


@settings(max_examples=60, deadline=None)
@given(models_and_layouts())
def test_every_element_is_held_once_and_comes_back_identical(case):
    shape, tensor, pipeline, virtual = case
    generator = torch.Generator().manual_seed(0)
    source = {
        name: torch.randint(-(2**15), 2**15, dims, generator=generator, dtype=torch.int16).view(torch.bfloat16)
        for name, dims in hf_tensors(shape).items()
    }
    copies = {name: torch.zeros(tensor_.shape, dtype=torch.int32) for name, tensor_ in source.items()}
    result = {name: torch.zeros_like(tensor_) for name, tensor_ in source.items()}
    expected = dict.fromkeys(source, 1)
    for layout in rank_layouts(shape, tensor=tensor, pipeline=pipeline, virtual=virtual):
        entries = list_parameters(shape, layout)
        assert len({(entry.chunk, entry.name) for entry in entries}) == len(entries)
        for entry in entries:
            param = torch.full(entry.shape, torch.nan, dtype=torch.bfloat16)
            fill_parameter(param, entry, lambda box: source[box.tensor][box.slices])
            padding = torch.ones(entry.shape, dtype=torch.bool)
            for piece in entry.pieces:
                box = piece.box
                assert padding[piece.slices].all(), "pieces overlap"
                padding[piece.slices] = False
                result[box.tensor][box.slices] = param[piece.slices]
                copies[box.tensor][box.slices] += 1
            assert int(padding.sum()) == entry.num_padding
            assert not padding.any() or "embedding" in entry.name or "output_layer" in entry.name
            assert bool((param[padding] == 0).all())
            if layout.tensor_rank == 0 and entry.split_dim is None:
                expected[entry.pieces[0].box.tensor] = tensor
            if layout.tensor_rank == 0 and entry.tied:
                expected["model.embed_tokens.weight"] = 2
    for name, original in source.items():
        assert bool((copies[name] == expected[name]).all()), f"{name}: {copies[name]} copies, not {expected[name]}"
        # Compared as integers: NaN patterns count too.
        assert torch.equal(result[name].view(torch.int16), original.view(torch.int16))


def test_filling_converts_to_the_parameters_dtype_only():
    entry = entries_of(make_shape(num_layers=1))["decoder.final_layernorm.weight"]
    exact = torch.tensor([1.0, 1.00390625, -3.0, 0.1, 65504.0, 1e-30])
    wide, narrow = torch.empty(6), torch.empty(6, dtype=torch.bfloat16)
    fill_parameter(wide, entry, lambda _: exact)
    fill_parameter(narrow, entry, lambda _: exact)
    assert torch.equal(wide, exact)
    assert torch.equal(narrow, exact.bfloat16())


def test_shapes_are_checked_before_copy_could_broadcast():
    entry = entries_of(make_shape())["decoder.final_layernorm.weight"]
    with pytest.raises(ModelError, match=r"local shape \(6,\), found \(6, 1\)"):
        fill_parameter(torch.empty(6, 1), entry, lambda box: torch.empty(box.shape))
    with pytest.raises(ModelError, match=r"expected shape \(6,\).*found \(1,\)"):
        fill_parameter(torch.empty(6), entry, lambda box: torch.empty(1))
    with pytest.raises(ModelError, match="local shape"):
        fill_parameter(torch.empty(5), entry, lambda box: torch.empty(box.shape))


@pytest.mark.parametrize(("start", "stop"), [((0,), (0,)), ((-1,), (2,)), ((0, 0), (1,))])
def test_empty_or_malformed_boxes_are_refused(start, stop):
    with pytest.raises(ValueError, match="malformed box of w"):
        Box("w", start, stop)
