"""Which layers, rows and columns one model-parallel rank holds, by Megatron-core's own rules.

Invariants: the ranks of a (tensor, pipeline) grid hold every layer once per tensor rank; the padded vocabulary is the
same on every rank.
"""

from dataclasses import dataclass

from megarl.models.geometry import check_tensor_split, layers_per_chunk, padded_vocab
from megarl.models.shape import ModelError, ModelShape


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
    check_tensor_split(shape, tensor_size, side="policy")
    chunk_layers = layers_per_chunk(shape, pipeline_size, virtual)
    stride = pipeline_size * chunk_layers
    starts = [chunk * stride + pipeline_rank * chunk_layers for chunk in range(virtual)]
    return RankLayout(
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
        layers=tuple(range(start, start + chunk_layers) for start in starts),
        has_embedding=pipeline_rank == 0,
        has_output=pipeline_rank == pipeline_size - 1,
        padded_vocab=padded_vocab(shape, tensor_size, side="policy"),
    )
