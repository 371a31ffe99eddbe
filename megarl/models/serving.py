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
from megarl.models.dense import EMBEDDING, OUTPUT, dense_tensors
from megarl.models.shape import ModelError, ModelShape

VOCAB_PADDING = 64
"""vLLM pads the vocabulary to a multiple of this (DEFAULT_VOCAB_PADDING_SIZE) before it splits it."""


def engine_split_problems(shape: ModelShape, tensor_size: int) -> list[str]:
    """Why vLLM cannot split the model over so many workers."""
    problems = []
    if shape.num_heads % tensor_size:
        problems.append(f"{shape.num_heads} attention heads are not a multiple of it")
    if shape.num_kv_heads % tensor_size and tensor_size % shape.num_kv_heads:
        problems.append(f"{shape.num_kv_heads} key-value heads are neither a multiple nor a divisor of it")
    if shape.ffn_size % tensor_size:
        problems.append(f"{shape.ffn_size} rows of the MLP are not a multiple of it")
    if _padded_vocab(shape) % tensor_size:
        problems.append(f"{_padded_vocab(shape)} rows of the padded vocabulary are not a multiple of it")
    return problems


def check_engine_split(shape: ModelShape, tensor_size: int) -> None:
    """ModelError, with every reason at once, where vLLM cannot split the model over so many workers."""
    if problems := engine_split_problems(shape, tensor_size):
        raise ModelError(
            f"an engine of tensor size {tensor_size} does not split this model: {'; '.join(problems)}. Choose another."
        )


def kv_heads_per_worker(shape: ModelShape, tensor_size: int) -> int:
    """Key-value heads of one worker: its share, or one that neighbours hold too."""
    return max(1, shape.num_kv_heads // tensor_size)


def engine_boxes(shape: ModelShape, *, tensor_rank: int, tensor_size: int) -> tuple[Box, ...]:
    """The boxes that worker `tensor_rank` of an engine wants, in the checkpoint's order; none is empty.

    Raises ModelError where vLLM cannot split the model.
    """
    check_engine_split(shape, tensor_size)
    return tuple(_boxes(shape, tensor_rank, tensor_size))


def engine_weight_elements(shape: ModelShape, tensor_size: int) -> int:
    """Elements of one worker's parameters, vocabulary padding included; the same on every worker."""
    rows = _padded_vocab(shape) // tensor_size
    vocabulary = rows * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    boxes = engine_boxes(shape, tensor_rank=0, tensor_size=tensor_size)
    return vocabulary + sum(box.num_elements for box in boxes if box.tensor not in (EMBEDDING, OUTPUT))


def _boxes(shape: ModelShape, rank: int, size: int) -> Iterator[Box]:
    heads = {"q_proj": _heads(shape, shape.num_heads // size, rank)}
    # Where there are fewer key-value heads than workers, neighbours hold the same one.
    sharing = max(1, size // shape.num_kv_heads)
    heads["k_proj"] = heads["v_proj"] = _heads(shape, kv_heads_per_worker(shape, size), rank // sharing)
    for name, dims in dense_tensors(shape):
        low, high = [0] * len(dims), list(dims)
        match name.split(".")[-2]:
            case "q_proj" | "k_proj" | "v_proj" as module:
                low[0], high[0] = heads[module]
            case "gate_proj" | "up_proj":
                low[0], high[0] = _part(dims[0], rank, size)
            case "o_proj" | "down_proj":
                low[1], high[1] = _part(dims[1], rank, size)
            case _ if name in (EMBEDDING, OUTPUT):
                first, last = _part(_padded_vocab(shape), rank, size)
                low[0], high[0] = min(first, dims[0]), min(last, dims[0])
        if math.prod(b - a for a, b in zip(low, high, strict=True)):
            yield Box(name, tuple(low), tuple(high))


def _heads(shape: ModelShape, count: int, index: int) -> tuple[int, int]:
    """Rows of the index-th run of `count` heads."""
    return index * count * shape.head_dim, (index + 1) * count * shape.head_dim


def _part(length: int, rank: int, size: int) -> tuple[int, int]:
    return rank * (length // size), (rank + 1) * (length // size)


def _padded_vocab(shape: ModelShape) -> int:
    return -(-shape.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
