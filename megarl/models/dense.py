"""The dense decoder families (Llama 3, SmolLM2, Qwen2.5): their tensors, and the Megatron parameters made of them.

Invariants: this file alone knows tensor names of these families; `parameter` order of rows is Megatron-core's
(`SelfAttention.get_query_key_value_tensors`, `MLP.forward`), of tensor names transformers'. It is a `FamilyTable`.
"""

from collections.abc import Iterator

from megarl.models.boxes import Parameter, Segment
from megarl.models.family import EMBEDDING, OUTPUT, EngineCut, Spec
from megarl.models.shape import ModelShape

_FINAL_NORM = "model.norm.weight"


def tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the checkpoint, in the order transformers writes them."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    heads = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
    yield EMBEDDING, (shape.vocab_size, hidden)
    for index in range(shape.num_layers):
        prefix = f"model.layers.{index}"
        for letter, count in heads.items():
            yield f"{prefix}.self_attn.{letter}_proj.weight", (count * shape.head_dim, hidden)
            if shape.qkv_bias:
                yield f"{prefix}.self_attn.{letter}_proj.bias", (count * shape.head_dim,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, shape.num_heads * shape.head_dim)
        yield f"{prefix}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield _FINAL_NORM, (hidden,)
    if not shape.tied_embeddings:
        yield OUTPUT, (shape.vocab_size, hidden)


def embedding(shape: ModelShape, *, padded_vocab: int) -> Parameter:
    """The word embedding [padded_vocab, hidden], rows split over the tensor ranks."""
    return _vocabulary("embedding.word_embeddings.weight", EMBEDDING, shape, padded_vocab)


def final_norm(shape: ModelShape) -> Parameter:
    """The norm before the output layer [hidden], the same on every tensor rank."""
    return _whole("decoder.final_layernorm.weight", _FINAL_NORM, (shape.hidden_size,), split_dim=None)


def output(shape: ModelShape, *, padded_vocab: int) -> Parameter:
    """The output layer; with tied embeddings it holds the embedding's rows."""
    return _vocabulary("output_layer.weight", EMBEDDING if shape.tied_embeddings else OUTPUT, shape, padded_vocab)


def layer(
    shape: ModelShape, *, local_index: int, global_index: int, tensor_size: int, spec: Spec
) -> Iterator[Parameter]:
    """Parameters of one layer: Megatron names with the chunk's `local_index`, tensors with the `global_index`."""
    here, tensor, hidden = f"decoder.layers.{local_index}", f"model.layers.{global_index}", shape.hidden_size
    norms = {
        "local": ("input_layernorm.weight", "pre_mlp_layernorm.weight"),
        "te": ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"),
    }[spec]
    qkv_rows = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    yield _whole(f"{here}.{norms[0]}", f"{tensor}.input_layernorm.weight", (hidden,), split_dim=None)
    yield _whole(
        f"{here}.self_attention.linear_proj.weight",
        f"{tensor}.self_attn.o_proj.weight",
        (hidden, shape.num_heads * shape.head_dim),
        split_dim=1,
    )
    for kind, dims in (("weight", (qkv_rows, hidden)), ("bias", (qkv_rows,))):
        if kind == "weight" or shape.qkv_bias:
            segments = tuple(_grouped_qkv(shape, f"{tensor}.self_attn", kind))
            name = f"{here}.self_attention.linear_qkv.{kind}"
            yield Parameter(name=name, shape=dims, split_dim=0, segments=segments)
    yield _whole(f"{here}.{norms[1]}", f"{tensor}.post_attention_layernorm.weight", (hidden,), split_dim=None)
    yield Parameter(
        name=f"{here}.mlp.linear_fc1.weight",
        shape=(2 * shape.ffn_size, hidden),
        split_dim=0,
        segments=tuple(_gate_up(shape, f"{tensor}.mlp", tensor_size)),
    )
    fc2_shape = (hidden, shape.ffn_size)
    yield _whole(f"{here}.mlp.linear_fc2.weight", f"{tensor}.mlp.down_proj.weight", fc2_shape, split_dim=1)


def engine_cut(tensor: str) -> EngineCut:
    """As LlamaForCausalLM and Qwen2ForCausalLM of vLLM 0.32 do."""
    if tensor in (EMBEDDING, OUTPUT):
        return "vocabulary"
    match tensor.split(".")[-2]:
        case "q_proj":
            return "query heads"
        case "k_proj" | "v_proj":
            return "key-value heads"
        case "gate_proj" | "up_proj":
            return "rows"
        case "o_proj" | "down_proj":
            return "columns"
    return "whole"


def _grouped_qkv(shape: ModelShape, prefix: str, kind: str) -> Iterator[Segment]:
    """Per key-value head: its query heads, the key head, the value head.

    Megatron cuts this order into equal parts for the tensor ranks. With fewer key-value heads than tensor ranks a
    part ends inside a group, even inside a head; SelfAttention then gathers the activations before it takes its heads,
    so nothing is replicated.
    """
    query_rows, rows = shape.heads_per_group * shape.head_dim, shape.head_dim
    for group in range(shape.num_kv_heads):
        yield Segment(f"{prefix}.q_proj.{kind}", group * query_rows, (group + 1) * query_rows)
        yield Segment(f"{prefix}.k_proj.{kind}", group * rows, (group + 1) * rows)
        yield Segment(f"{prefix}.v_proj.{kind}", group * rows, (group + 1) * rows)


def _gate_up(shape: ModelShape, prefix: str, tensor_size: int) -> Iterator[Segment]:
    """Per tensor rank: its gate rows, then its up rows, because the rank's output is chunked in two."""
    rows = shape.ffn_size // tensor_size
    for rank in range(tensor_size):
        yield Segment(f"{prefix}.gate_proj.weight", rank * rows, (rank + 1) * rows)
        yield Segment(f"{prefix}.up_proj.weight", rank * rows, (rank + 1) * rows)


def _vocabulary(name: str, tensor: str, shape: ModelShape, padded_vocab: int) -> Parameter:
    segments = [Segment(tensor, 0, shape.vocab_size), Segment(None, shape.vocab_size, padded_vocab)]
    return Parameter(name=name, shape=(padded_vocab, shape.hidden_size), split_dim=0, segments=tuple(segments))


def _whole(name: str, tensor: str, dims: tuple[int, ...], *, split_dim: int | None) -> Parameter:
    """A parameter that is one tensor, row for row."""
    length = dims[split_dim or 0]
    return Parameter(name=name, shape=dims, split_dim=split_dim, segments=(Segment(tensor, 0, length),))
