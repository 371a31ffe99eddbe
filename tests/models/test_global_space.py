"""The global space against the table of weights: every element of every layout and spec, by brute force.

That it is Megatron-core's own space is shown in tests/checkpoint/test_megatron_space.py.
"""

import itertools

import numpy as np
import pytest

from megarl.models.global_space import (
    extra_state_objects,
    flat_pieces,
    global_space,
    global_tensors,
    rank_pieces,
)
from megarl.models.layout import layout_of
from megarl.models.table import Box, hf_tensors
from tests.models.shapes import make_shape, real_shape

SHAPES = {
    "tied with biases": make_shape(num_layers=4, tied_embeddings=True, qkv_bias=True),
    "one key-value head": make_shape(num_layers=4, num_kv_heads=1, head_dim=4),
    "untied": make_shape(num_layers=4),
}
LAYOUTS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1), (2, 2, 2), (1, 4, 1)]
"""(tensor, pipeline, virtual)"""


def slices(offsets, sizes):
    return tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))


def numbered(shape):
    """Every tensor of the checkpoint and of the global space, each element with a number of its own."""
    tensors, count = {}, 0
    for name, dims in hf_tensors(shape).items():
        tensors[name] = np.arange(count, count + np.prod(dims)).reshape(dims)
        count += tensors[name].size
    space = {}
    for key, tensor in global_tensors(shape).items():
        space[key] = np.full(tensor.shape, -1)
        for link in global_space(shape).links_of_piece(key, (0,) * len(tensor.shape), tensor.shape):
            target = space[key][slices(link.offsets, link.sizes)]
            assert (target == -1).all()
            target[...] = tensors[link.box.tensor][link.box.slices].reshape(link.sizes)
        assert (space[key] >= 0).all()
    assert sum(values.size for values in space.values()) == count
    return tensors, space


def every_rank(shape, layout):
    tensor, pipeline, virtual = layout
    return [
        layout_of(
            shape,
            tensor_rank=tensor_rank,
            tensor_size=tensor,
            pipeline_rank=pipeline_rank,
            pipeline_size=pipeline,
            virtual=virtual,
        )
        for tensor_rank, pipeline_rank in itertools.product(range(tensor), range(pipeline))
    ]


def local_parameter(entry, tensors):
    values = np.full(entry.shape, -1)
    for piece in entry.pieces:
        values[piece.slices] = tensors[piece.box.tensor][piece.box.slices]
    return values


@pytest.mark.parametrize("spec", ["local", "te"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_ranks_pieces_are_its_parameters_and_all_ranks_write_every_element_once(name, layout, spec):
    shape = SHAPES[name]
    if shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads) % layout[0]:
        pytest.skip("does not split so")
    tensors, space = numbered(shape)
    written = {key: np.zeros(values.shape, int) for key, values in space.items()}
    for rank in every_rank(shape, layout):
        for placed in rank_pieces(shape, rank, spec=spec).values():
            expected = local_parameter(placed.entry, tensors)
            found = np.full(expected.shape, -1)
            for piece in placed.pieces:
                index = slices(piece.offsets, piece.sizes)
                found[piece.local] = space[piece.key][index].reshape(piece.local_shape)
                written[piece.key][index] += not placed.is_replica
            np.testing.assert_array_equal(found, expected, err_msg=placed.entry.name)
    assert all((count == 1).all() for count in written.values())


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 1), (4, 1, 1)])
def test_pieces_are_as_few_as_megatrons(layout):
    """One a parameter, two of `linear_fc1` where it is split: what Megatron-core's own writer stores."""
    shape = SHAPES["untied"] if layout[0] < 4 else SHAPES["one key-value head"]
    for rank in every_rank(shape, layout):
        for placed in rank_pieces(shape, rank, spec="te").values():
            split = "linear_fc1.weight" in placed.entry.name and layout[0] > 1
            assert len(placed.pieces) <= (2 if split else 1)


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 1)])
def test_flat_shares_are_rectangles_of_the_space(layout):
    shape = SHAPES["tied with biases"]
    tensors, space = numbered(shape)
    random = np.random.default_rng(1)
    for rank in every_rank(shape, layout):
        for placed in rank_pieces(shape, rank).values():
            flat = local_parameter(placed.entry, tensors).reshape(-1)
            bounds = np.sort(random.integers(0, flat.size + 1, (20, 2)), axis=1)
            for start, stop in [(0, flat.size), *(pair for pair in bounds.tolist() if pair[0] < pair[1])]:
                found = np.full(stop - start, -1)
                for piece in placed.pieces:
                    parts = flat_pieces(piece, placed.entry.shape, start=start, size=stop - start)
                    assert len(parts) <= 3
                    for part in parts:
                        values = space[part.key][slices(part.offsets, part.sizes)]
                        found[part.start : part.start + part.num_elements] = values.reshape(-1)
                np.testing.assert_array_equal(found, flat[start:stop], err_msg=placed.entry.name)


def test_boxes_of_the_checkpoint_lie_where_their_elements_do():
    shape = SHAPES["tied with biases"]
    tensors, space = numbered(shape)
    for name, dims in hf_tensors(shape).items():
        box = Box(name, (1,) * len(dims), tuple(size - 1 for size in dims))
        found = np.full(box.shape, -1)
        for link in global_space(shape).links_of_box(box):
            place = tuple(slice(a - 1, b - 1) for a, b in zip(link.box.start, link.box.stop, strict=True))
            found[place] = space[link.key][slices(link.offsets, link.sizes)].reshape(link.box.shape)
        np.testing.assert_array_equal(found, tensors[name][box.slices])


def test_keys_and_shapes_of_a_real_model():
    """Qwen2.5-7B: 28 layers, hidden 3584, 28 + 2 * 4 heads of 128, MLP 18944, vocabulary 152064."""
    tensors = {key: tensor.shape for key, tensor in global_tensors(real_shape("qwen2.5-7b")).items()}
    layers = "decoder.layers"
    assert tensors == {
        "embedding.word_embeddings.weight": (152064, 3584),
        f"{layers}.self_attention.linear_qkv.layer_norm_weight": (28, 3584),
        f"{layers}.self_attention.linear_qkv.weight": (28, 4608, 3584),
        f"{layers}.self_attention.linear_qkv.bias": (28, 4608),
        f"{layers}.self_attention.linear_proj.weight": (28, 3584, 3584),
        f"{layers}.mlp.linear_fc1.layer_norm_weight": (28, 3584),
        f"{layers}.mlp.linear_fc1.weight": (28, 37888, 3584),
        f"{layers}.mlp.linear_fc2.weight": (28, 3584, 18944),
        "decoder.final_layernorm.weight": (3584,),
        "output_layer.weight": (152064, 3584),
    }
    assert len(extra_state_objects(real_shape("qwen2.5-7b"))) == 5 * 28 + 1
