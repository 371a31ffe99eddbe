"""What an engine's workers hold: hand-written cases, and that together they hold the checkpoint."""

import pytest
import torch

from megarl.models.boxes import Box
from megarl.models.geometry import check_tensor_split, tensor_share
from megarl.models.serving import engine_boxes, engine_weight_elements
from megarl.models.shape import ModelError, ModelShape
from megarl.models.table import hf_tensors
from tests.models.shapes import make_shape, real_shape

LAYER = "model.layers.1"


def boxes_of(shape: ModelShape, rank: int, size: int) -> dict[str, Box]:
    return {box.tensor: box for box in engine_boxes(shape, tensor_rank=rank, tensor_size=size)}


def bounds(box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return box.start, box.stop


def test_the_second_of_two_workers_by_hand() -> None:
    """Hidden 6, MLP 8, four query and two key-value heads of 3, vocabulary 11 padded to 64."""
    boxes = boxes_of(make_shape(qkv_bias=True, family="qwen2"), 1, 2)
    assert bounds(boxes[f"{LAYER}.self_attn.q_proj.weight"]) == ((6, 0), (12, 6))
    assert bounds(boxes[f"{LAYER}.self_attn.k_proj.weight"]) == ((3, 0), (6, 6))
    assert bounds(boxes[f"{LAYER}.self_attn.v_proj.bias"]) == ((3,), (6,))
    assert bounds(boxes[f"{LAYER}.self_attn.o_proj.weight"]) == ((0, 6), (6, 12))
    assert bounds(boxes[f"{LAYER}.mlp.gate_proj.weight"]) == ((4, 0), (8, 6))
    assert bounds(boxes[f"{LAYER}.mlp.up_proj.weight"]) == ((4, 0), (8, 6))
    assert bounds(boxes[f"{LAYER}.mlp.down_proj.weight"]) == ((0, 4), (6, 8))
    assert bounds(boxes[f"{LAYER}.input_layernorm.weight"]) == ((0,), (6,))
    # Rows 0 to 31 are the first worker's; the second has padding only.
    assert "model.embed_tokens.weight" not in boxes
    assert "lm_head.weight" not in boxes
    assert bounds(boxes_of(make_shape(), 0, 2)["lm_head.weight"]) == ((0, 0), (11, 6))


def test_a_vocabulary_ends_inside_a_worker() -> None:
    """100 rows padded to 128: 64 for each of two workers."""
    shape = make_shape(vocab_size=100)
    assert bounds(boxes_of(shape, 0, 2)["model.embed_tokens.weight"]) == ((0, 0), (64, 6))
    assert bounds(boxes_of(shape, 1, 2)["model.embed_tokens.weight"]) == ((64, 0), (100, 6))


def test_neighbours_share_a_key_value_head() -> None:
    shape = make_shape()
    keys = [boxes_of(shape, rank, 4)[f"{LAYER}.self_attn.k_proj.weight"] for rank in range(4)]
    assert [bounds(box) for box in keys] == [((0, 0), (3, 6))] * 2 + [((3, 0), (6, 6))] * 2
    assert [tensor_share(shape, size, side="engine").kv_heads for size in (1, 2, 4)] == [2, 1, 1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_workers_together_hold_everything_and_only_norms_and_shared_heads_twice(size: int, tied: bool) -> None:
    shape = make_shape(qkv_bias=True, family="qwen2", tied_embeddings=tied)
    tensors = hf_tensors(shape)
    counts = {name: torch.zeros(dims, dtype=torch.int) for name, dims in tensors.items()}
    for rank in range(size):
        for name, box in boxes_of(shape, rank, size).items():
            counts[name][box.slices] += 1
    for name, count in counts.items():
        whole = "norm" in name
        shared = "k_proj" in name or "v_proj" in name
        expected = size if whole else max(1, size // shape.num_kv_heads) if shared else 1
        assert bool((count == expected).all()), name


def test_weights_of_a_worker_by_hand() -> None:
    """Llama 3 70B on 8: its parameters over 8, but for the norms, which every worker holds whole."""
    shape = real_shape("llama-3-70b")
    norms = (2 * 80 + 1) * 8192
    assert engine_weight_elements(shape, 8) == (70_553_706_496 - norms) // 8 + norms
    # Its 8 key-value heads are held twice by 16 workers.
    keys = 2 * 80 * 8 * 128 * 8192
    assert engine_weight_elements(shape, 16) == (70_553_706_496 - norms + keys) // 16 + norms
    # Padding counts; a tied model has one vocabulary.
    small, tied = make_shape(), make_shape(tied_embeddings=True)
    assert engine_weight_elements(small, 2) - engine_weight_elements(tied, 2) == 32 * 6


def test_a_split_that_vllm_refuses_names_every_reason() -> None:
    with pytest.raises(ModelError) as error:
        check_tensor_split(real_shape("qwen2.5-7b"), 5, side="engine")
    text = str(error.value)
    assert "28 attention heads" in text
    assert "4 key-value heads" in text
    assert "18944 rows of the MLP" in text
    assert "152064 rows of the padded vocabulary" in text
    # Llama 3 8B's vocabulary is what 32 workers but not 3 divide.
    check_tensor_split(real_shape("llama-3-8b"), 32, side="engine")
