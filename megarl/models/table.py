"""The one table of the weights: which boxes of which checkpoint tensors each Megatron parameter of a rank holds.

Loading, exporting, resharding and publishing all read this table and no other. Invariant, for the ranks of one model
replica: the pieces cover every element of every checkpoint tensor exactly once, but for entries without a `split_dim`,
which every tensor rank holds whole, and `tied` ones, which repeat the first stage's embedding on the last.
"""

from collections.abc import Iterator

from megarl.models.boxes import Box, Parameter, ParameterEntry, Piece
from megarl.models.families import family_of
from megarl.models.family import FamilyTable, Spec
from megarl.models.layout import RankLayout
from megarl.models.shape import ModelShape

__all__ = ["Box", "ParameterEntry", "Piece", "Spec", "family_table", "hf_tensors", "list_parameters"]


def family_table(shape: ModelShape) -> FamilyTable:
    """The tables of the model's family."""
    return family_of(shape.family).TABLE


def hf_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint of this model; with tied embeddings there is no lm_head."""
    return dict(family_table(shape).tensors(shape))


def list_parameters(shape: ModelShape, layout: RankLayout, *, spec: Spec = "local") -> tuple[ParameterEntry, ...]:
    """Every parameter of the rank's GPTModel chunks, chunk by chunk from the embedding to the output layer.

    Names are those of Megatron-core's GPTModel built with its local layer spec or, with spec="te", Transformer
    Engine's, where the weights of a layer's two norms live in the linear layers after them.
    """
    return tuple(
        ParameterEntry(
            name=parameter.name,
            chunk=chunk,
            shape=parameter.local_shape(layout.tensor_size),
            pieces=tuple(parameter.cut(tensor_rank=layout.tensor_rank, tensor_size=layout.tensor_size)),
            split_dim=parameter.split_dim,
            tied=tied,
        )
        for chunk, parameter, tied in _walk(shape, layout, spec)
    )


def _walk(shape: ModelShape, layout: RankLayout, spec: Spec) -> Iterator[tuple[int, Parameter, bool]]:
    """(chunk, whole parameter, is the tied copy) of everything the rank holds."""
    family, last_chunk = family_table(shape), len(layout.layers) - 1
    for chunk, layers in enumerate(layout.layers):
        if layout.has_embedding and chunk == 0:
            yield chunk, family.embedding(shape, padded_vocab=layout.padded_vocab), False
        for local_index, global_index in enumerate(layers):
            for parameter in family.layer(
                shape,
                local_index=local_index,
                global_index=global_index,
                tensor_size=layout.tensor_size,
                spec=spec,
            ):
                yield chunk, parameter, False
        if layout.has_output and chunk == last_chunk:
            yield chunk, family.final_norm(shape), False
            # A chunk that has the embedding too uses it as its output layer and allocates none.
            embedding_here = layout.has_embedding and chunk == 0
            if not (shape.tied_embeddings and embedding_here):
                yield chunk, family.output(shape, padded_vocab=layout.padded_vocab), shape.tied_embeddings
