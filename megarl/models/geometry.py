"""How a model splits over tensor ranks and pipeline stages: the one source of what must divide what.

Preflight, the policy's and the engines' layouts and the plan of memory all ask here, so that what is advised, what is
planned and what runs cannot differ. The rules are Megatron-core's (TransformerConfig, SelfAttention, MLP) and vLLM's
(QKVParallelLinear, MergedColumnParallelLinear, VocabParallelEmbedding in vLLM 0.32).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megarl.models.shape import ModelError, ModelShape

Side = Literal["policy", "engine"]
"""Whose tensor ranks: Megatron-core's or vLLM's."""

VOCAB_MULTIPLE = 8
"""Rows per policy rank are a multiple of this: 16 bytes of bfloat16, what tensor cores want of a matrix dimension.
Llama 3 (128256), Qwen2.5 (151936) and SmolLM2 (49152) need no padding with it up to 16 tensor ranks."""

ENGINE_VOCAB_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this (DEFAULT_VOCAB_PADDING_SIZE) before it splits it."""


def padded_vocab_size(vocab_size: int, tensor_size: int, *, multiple: int = VOCAB_MULTIPLE) -> int:
    """The smallest multiple of `multiple * tensor_size` that holds `vocab_size` rows, which is the policy's.

    Megatron's convention with a smaller multiple than its 128, so that common vocabularies stay unpadded.
    """
    step = multiple * tensor_size
    return -(-vocab_size // step) * step


def padded_vocab(shape: ModelShape, tensor_size: int, *, side: Side) -> int:
    """Rows of the embedding over all tensor ranks. vLLM pads without regard to their number."""
    if side == "policy":
        return padded_vocab_size(shape.vocab_size, tensor_size)
    return padded_vocab_size(shape.vocab_size, 1, multiple=ENGINE_VOCAB_MULTIPLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShare:
    """What one tensor rank has of each split size."""

    size: int
    """Tensor ranks."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key-value heads it attends with; where there are fewer than ranks, one that neighbours use too."""
    kv_sharing: int
    """Neighbouring ranks that use the same key-value head."""
    qkv_rows: int
    """Of the fused projection that one rank computes with: its own, or all where a group is cut by ranks and Megatron
    gathers it."""
    ffn_rows: int
    vocab_rows: int
    """Padding included."""


def tensor_share(shape: ModelShape, tensor_size: int, *, side: Side) -> TensorShare:
    """The share of each of `tensor_size` ranks; ModelError, with every reason at once, where there is none."""
    check_tensor_split(shape, tensor_size, side=side)
    fused = _qkv_rows(shape)
    return TensorShare(
        size=tensor_size,
        heads=shape.num_heads // tensor_size,
        kv_heads=max(1, shape.num_kv_heads // tensor_size),
        kv_sharing=max(1, tensor_size // shape.num_kv_heads),
        qkv_rows=fused // tensor_size if tensor_size <= shape.num_kv_heads else fused,
        ffn_rows=shape.ffn_size // tensor_size,
        vocab_rows=padded_vocab(shape, tensor_size, side=side) // tensor_size,
    )


def tensor_problems(shape: ModelShape, tensor_size: int, *, side: Side) -> list[str]:
    """Why the model cannot be split over so many ranks; "it" is their number."""
    return list(_tensor_problems(shape, tensor_size, side))


def _tensor_problems(shape: ModelShape, tensor_size: int, side: Side) -> Iterator[str]:
    if shape.num_heads % tensor_size:
        yield f"{shape.num_heads} attention heads are not a multiple of it"
    if shape.num_kv_heads % tensor_size and tensor_size % shape.num_kv_heads:
        yield f"{shape.num_kv_heads} key-value heads are neither a multiple nor a divisor of it"
    # vLLM splits by heads; Megatron cuts the rows of all heads in equal parts.
    rows = {"rows of the fused QKV": _qkv_rows(shape)} if side == "policy" else {}
    rows["rows of the MLP"] = shape.ffn_size
    rows["rows of the padded vocabulary"] = padded_vocab(shape, tensor_size, side=side)
    yield from (f"{count} {what} are not a multiple of it" for what, count in rows.items() if count % tensor_size)


def check_tensor_split(shape: ModelShape, tensor_size: int, *, side: Side) -> None:
    """ModelError, with every reason at once, where the model does not split over so many ranks."""
    if problems := tensor_problems(shape, tensor_size, side=side):
        whose = "tensor size" if side == "policy" else "an engine of tensor size"
        raise ModelError(f"{whose} {tensor_size} does not split this model: {'; '.join(problems)}. Choose another.")


def tensor_sizes(shape: ModelShape, *, at_most: int, side: Side) -> list[int]:
    """The numbers of ranks that the model splits over, ascending."""
    return [size for size in range(1, at_most + 1) if not tensor_problems(shape, size, side=side)]


def stage_counts(shape: ModelShape) -> list[int]:
    """The numbers of pipeline stages that the layers divide into, ascending: Megatron's, without uneven stages."""
    return [count for count in range(1, shape.num_layers + 1) if shape.num_layers % count == 0]


def layers_per_chunk(shape: ModelShape, pipeline_size: int, virtual: int = 1) -> int:
    """Layers of each of a stage's `virtual` model chunks; ModelError where the layers do not divide so."""
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


def check_policy_split(shape: ModelShape, *, tensor_size: int, pipeline_size: int) -> None:
    """ModelError, with every reason at once, where a replica of the model cannot lie on these ranks."""
    problems = []
    for check in (
        lambda: check_tensor_split(shape, tensor_size, side="policy"),
        lambda: layers_per_chunk(shape, pipeline_size),
    ):
        try:
            check()
        except ModelError as error:
            problems.append(str(error))
    if problems:
        raise ModelError("\n".join(problems))


def policy_splits(shape: ModelShape, *, tensor_size: int, pipeline_size: int) -> bool:
    """Whether a replica of the model can lie on these ranks."""
    return pipeline_size in stage_counts(shape) and not tensor_problems(shape, tensor_size, side="policy")


def _qkv_rows(shape: ModelShape) -> int:
    return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
