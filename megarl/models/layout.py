"""Which layers, rows and columns one model-parallel rank holds, by Megatron-core's own rules.

Invariants: the ranks of a (tensor, pipeline) grid hold every layer once per tensor rank; the padded vocabulary is the
same on every rank and comes from `padded_vocab_size` alone.
"""

from dataclasses import dataclass

from megarl.models.shape import ModelError, ModelShape

VOCAB_MULTIPLE = 8
"""Rows per tensor rank are a multiple of this: 16 bytes of bfloat16, what tensor cores want of a matrix dimension.
Llama 3 (128256), Qwen2.5 (151936) and SmolLM2 (49152) need no padding with it up to 16 tensor ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """What one rank holds. `layers[chunk]` are the global indices of the layers of its virtual-pipeline chunk."""

    tensor_rank: int
    tensor_size: int
    layers: tuple[range, ...]
    """One range per chunk; a single one without a virtual pipeline."""
    has_embedding: bool
    """First pipeline stage: chunk 0 begins with the embedding."""
    has_output: bool
    """Last pipeline stage: the last chunk ends with the final norm and the output layer."""
    padded_vocab: int
    """Embedding rows over all tensor ranks; rows from vocab_size on are padding."""


def padded_vocab_size(vocab_size: int, tensor_size: int, *, multiple: int = VOCAB_MULTIPLE) -> int:
    """The smallest multiple of `multiple * tensor_size` that holds `vocab_size` rows.

    Megatron's convention with a smaller multiple than its 128, so that common vocabularies stay unpadded.
    """
    step = multiple * tensor_size
    return -(-vocab_size // step) * step


def layout_of(
    shape: ModelShape, *, tensor_rank: int, tensor_size: int, pipeline_rank: int, pipeline_size: int, virtual: int = 1
) -> RankLayout:
    """The layout of one rank; ModelError when the model does not split evenly, naming the numbers.

    Layers are placed as Megatron-core does without uneven stages: chunk c of stage p holds
    num_layers / (pipeline_size * virtual) layers from c * num_layers / virtual + p * that number on.
    """
    for name, rank, size in (("tensor", tensor_rank, tensor_size), ("pipeline", pipeline_rank, pipeline_size)):
        if not 0 <= rank < size:
            raise ModelError(f"expected a {name} rank from 0 to {size - 1}, found {rank}; correct the rank grid")
    if problems := tensor_split_problems(shape, tensor_size):
        raise ModelError(f"tensor size {tensor_size} does not split this model: {'; '.join(problems)}. Choose another.")
    chunk_layers = _layers_per_chunk(shape, pipeline_size, virtual)
    stride = pipeline_size * chunk_layers
    starts = [chunk * stride + pipeline_rank * chunk_layers for chunk in range(virtual)]
    return RankLayout(
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
        layers=tuple(range(start, start + chunk_layers) for start in starts),
        has_embedding=pipeline_rank == 0,
        has_output=pipeline_rank == pipeline_size - 1,
        padded_vocab=padded_vocab_size(shape.vocab_size, tensor_size),
    )


def _layers_per_chunk(shape: ModelShape, pipeline_size: int, virtual: int) -> int:
    if virtual < 1:
        raise ModelError(f"expected at least 1 virtual pipeline chunk, found {virtual}; set it to 1")
    if virtual > 1 and pipeline_size == 1:
        raise ModelError(
            f"expected 1 virtual chunk with a single pipeline stage, found {virtual}; Megatron interleaves only "
            "several stages: set virtual to 1 or pipeline above 1"
        )
    if shape.num_layers % (pipeline_size * virtual):
        raise ModelError(
            f"{shape.num_layers} layers are not a multiple of pipeline {pipeline_size} x virtual {virtual} = "
            f"{pipeline_size * virtual}; choose a divisor of {shape.num_layers}"
        )
    return shape.num_layers // (pipeline_size * virtual)


def tensor_split_problems(shape: ModelShape, tensor_size: int) -> list[str]:
    """Why the policy cannot be split over so many ranks (Megatron-core: TransformerConfig, SelfAttention, MLP)."""
    problems = []
    if shape.num_heads % tensor_size:
        problems.append(f"{shape.num_heads} attention heads are not a multiple of it")
    if shape.num_kv_heads % tensor_size and tensor_size % shape.num_kv_heads:
        problems.append(f"{shape.num_kv_heads} key-value heads are neither a multiple nor a divisor of it")
    qkv_rows = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    if qkv_rows % tensor_size:
        problems.append(f"{qkv_rows} rows of the fused QKV are not a multiple of it")
    if shape.ffn_size % tensor_size:
        problems.append(f"{shape.ffn_size} rows of the MLP are not a multiple of it")
    return problems
