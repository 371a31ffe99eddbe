"""What a model family must declare. A module that has what `Family` names is one; `families` lists them."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

from megarl.models.boxes import Parameter
from megarl.models.shape import ModelShape

Spec = Literal["local", "te"]
"""Megatron layer spec: its own modules, or Transformer Engine's, which keeps a norm's weight in the linear after it."""

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
"""Names of transformers for every family: the vocabulary, and the output layer where it is not tied to it."""

EngineCut = Literal["query heads", "key-value heads", "rows", "columns", "vocabulary", "whole"]
"""Along what vLLM cuts a tensor for the workers of an engine."""


class FamilyTable(Protocol):
    """Tensors of the checkpoint, the Megatron parameters made of them, and how vLLM cuts them.

    The order of a parameter's rows is Megatron-core's, tensor names are transformers'.
    """

    def tensors(self, shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor of the checkpoint, in the order transformers writes them."""

    def embedding(self, shape: ModelShape, *, padded_vocab: int) -> Parameter:
        """The word embedding [padded_vocab, hidden]."""

    def layer(
        self, shape: ModelShape, *, local_index: int, global_index: int, tensor_size: int, spec: Spec
    ) -> Iterator[Parameter]:
        """Parameters of one layer: Megatron names with the chunk's `local_index`, tensors with the `global_index`."""

    def final_norm(self, shape: ModelShape) -> Parameter:
        """The norm before the output layer [hidden]."""

    def output(self, shape: ModelShape, *, padded_vocab: int) -> Parameter:
        """The output layer; with tied embeddings it holds the embedding's rows."""

    def engine_cut(self, tensor: str) -> EngineCut:
        """How vLLM cuts a tensor of the checkpoint."""


class Family(Protocol):
    """A model family: how its config.json is read, and its tables."""

    MODEL_TYPE: str
    """Of config.json; `ModelShape.family`."""
    MODELS: str
    """For messages: the models that are of it."""
    TABLE: FamilyTable

    def read_shape(self, raw: dict[str, Any]) -> ModelShape:
        """The model of a config.json with this model_type; ModelError for everything that would be computed otherwise
        here than in transformers or in vLLM."""
