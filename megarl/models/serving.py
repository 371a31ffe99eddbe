"""What a tensor-parallel worker of a vLLM engine holds of a dense decoder, for planning without vLLM.

This is what vLLM's loader asks for (LlamaForCausalLM and Qwen2ForCausalLM in vLLM 0.32: QKVParallelLinear,
MergedColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding). A run does not use it: there the loader itself
is recorded, and that recording is the truth; a test compares the two.

Invariant: the boxes of an engine's workers together cover every element of the checkpoint; only norms, and key and
value heads where there are fewer of them than workers, are held more than once.
"""

import math
from collections.abc import Iterator

from megarl.models.boxes import Box
from megarl.models.geometry import TensorShare, tensor_share
from megarl.models.shape import ModelShape
from megarl.models.table import family_table


def engine_boxes(shape: ModelShape, *, tensor_rank: int, tensor_size: int) -> tuple[Box, ...]:
    """The boxes that worker `tensor_rank` of an engine wants, in the checkpoint's order; none is empty.

    Raises ModelError where vLLM cannot split the model.
    """
    return tuple(_boxes(shape, tensor_share(shape, tensor_size, side="engine"), tensor_rank))


def engine_weight_elements(shape: ModelShape, tensor_size: int) -> int:
    """Elements of one worker's parameters, vocabulary padding included; the same on every worker."""
    share, family = tensor_share(shape, tensor_size, side="engine"), family_table(shape)
    vocabulary = share.vocab_rows * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    boxes = engine_boxes(shape, tensor_rank=0, tensor_size=tensor_size)
    return vocabulary + sum(box.num_elements for box in boxes if family.engine_cut(box.tensor) != "vocabulary")


def _boxes(shape: ModelShape, share: TensorShare, rank: int) -> Iterator[Box]:
    family, head = family_table(shape), shape.head_dim
    for name, dims in family.tensors(shape):
        low, high = [0] * len(dims), list(dims)
        match family.engine_cut(name):
            case "query heads":
                low[0], high[0] = _part(share.heads * head, rank)
            case "key-value heads":
                low[0], high[0] = _part(share.kv_heads * head, rank // share.kv_sharing)
            case "rows":
                low[0], high[0] = _part(dims[0] // share.size, rank)
            case "columns":
                low[1], high[1] = _part(dims[1] // share.size, rank)
            case "vocabulary":
                low[0], high[0] = (min(row, dims[0]) for row in _part(share.vocab_rows, rank))
        if math.prod(b - a for a, b in zip(low, high, strict=True)):
            yield Box(name, tuple(low), tuple(high))


def _part(length: int, rank: int) -> tuple[int, int]:
    """The rank-th run of `length` indices."""
    return rank * length, (rank + 1) * length
