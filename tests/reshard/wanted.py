"""What one tensor-parallel rank of vLLM holds of a dense decoder (LlamaForCausalLM, Qwen2ForCausalLM).

Written from vLLM's own layers (QKVParallelLinear, MergedColumnParallelLinear, RowParallelLinear,
VocabParallelEmbedding), not from megarl's tables, so that the two can be held against each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.models.boxes import Box
from megarl.models.shape import ModelShape
from megarl.reshard.regions import Region, contiguous_strides

VOCAB_PADDING = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveParameter:
    """A parameter of the worker's model: boxes of the checkpoint one below the other, then `shape[0]`'s padding."""

    name: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    def regions(self) -> Iterator[tuple[Box, Region]]:
        """Each box and where it lies in the parameter, which is contiguous."""
        strides, row = contiguous_strides(self.shape), 0
        for box in self.boxes:
            yield box, Region(self.name, row * strides[0], strides)
            row += box.shape[0]

    def expected(self, tensors: Mapping[str, Tensor], untouched: int) -> Tensor:
        """What it holds after loading `tensors`; padding keeps the value it had."""
        memory = torch.full(self.shape, untouched, dtype=torch.int32)
        if self.boxes:
            rows = torch.cat([tensors[box.tensor][box.slices] for box in self.boxes])
            memory[: len(rows)] = rows
        return memory


def live_parameters(
    shape: ModelShape, *, rank: int, tensor_size: int, own_head: bool = False
) -> tuple[LiveParameter, ...]:
    """All parameters of tensor rank `rank`; `own_head`: of a tied model that keeps a second copy for its output."""
    q_heads = shape.num_heads // tensor_size
    kv_heads = max(1, shape.num_kv_heads // tensor_size)
    # With fewer key-value heads than ranks, neighbours hold the same head.
    kv_rank = rank if tensor_size <= shape.num_kv_heads else rank // (tensor_size // shape.num_kv_heads)
    width, hidden, ffn = shape.head_dim, shape.hidden_size, shape.ffn_size // tensor_size
    heads = {
        "q": (rank * q_heads * width, (rank + 1) * q_heads * width),
        "k": (kv_rank * kv_heads * width, (kv_rank + 1) * kv_heads * width),
        "v": (kv_rank * kv_heads * width, (kv_rank + 1) * kv_heads * width),
    }
    found = [_vocabulary("model.embed_tokens.weight", "model.embed_tokens.weight", shape, rank, tensor_size)]
    for layer in range(shape.num_layers):
        here = f"model.layers.{layer}"
        qkv = [Box(f"{here}.self_attn.{x}_proj.weight", (low, 0), (high, hidden)) for x, (low, high) in heads.items()]
        found.append(_stacked(f"{here}.self_attn.qkv_proj.weight", *qkv))
        if shape.qkv_bias:
            bias = [Box(f"{here}.self_attn.{x}_proj.bias", (low,), (high,)) for x, (low, high) in heads.items()]
            found.append(_stacked(f"{here}.self_attn.qkv_proj.bias", *bias))
        found.append(_columns(f"{here}.self_attn.o_proj.weight", hidden, rank, q_heads * width))
        gate_up = [
            Box(f"{here}.mlp.{x}_proj.weight", (rank * ffn, 0), ((rank + 1) * ffn, hidden)) for x in ("gate", "up")
        ]
        found.append(_stacked(f"{here}.mlp.gate_up_proj.weight", *gate_up))
        found.append(_columns(f"{here}.mlp.down_proj.weight", hidden, rank, ffn))
        found += (_norm(f"{here}.{x}_layernorm.weight", hidden) for x in ("input", "post_attention"))
    found.append(_norm("model.norm.weight", hidden))
    if own_head or not shape.tied_embeddings:
        source = "model.embed_tokens.weight" if shape.tied_embeddings else "lm_head.weight"
        found.append(_vocabulary("lm_head.weight", source, shape, rank, tensor_size))
    return tuple(found)


def targets_of(parameters: tuple[LiveParameter, ...]) -> dict[Box, tuple[Region, ...]]:
    """Where each box goes: in one parameter, or in several that hold it."""
    targets: dict[Box, tuple[Region, ...]] = {}
    for parameter in parameters:
        for box, region in parameter.regions():
            targets[box] = (*targets.get(box, ()), region)
    return targets


def _stacked(name: str, *boxes: Box) -> LiveParameter:
    return LiveParameter(name=name, shape=(sum(box.shape[0] for box in boxes), *boxes[0].shape[1:]), boxes=tuple(boxes))


def _columns(name: str, rows: int, rank: int, width: int) -> LiveParameter:
    return _stacked(name, Box(name, (0, rank * width), (rows, (rank + 1) * width)))


def _norm(name: str, hidden: int) -> LiveParameter:
    return _stacked(name, Box(name, (0,), (hidden,)))


def _vocabulary(name: str, tensor: str, shape: ModelShape, rank: int, tensor_size: int) -> LiveParameter:
    """Even parts of the padded vocabulary; the last ranks may have padding only."""
    padded = -(-shape.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    rows = padded // tensor_size
    first, last = rank * rows, min((rank + 1) * rows, shape.vocab_size)
    boxes = (Box(tensor, (first, 0), (last, shape.hidden_size)),) if first < last else ()
    return LiveParameter(name=name, shape=(rows, shape.hidden_size), boxes=boxes)
