"""What the config.json of a pre-norm decoder says, read alike for every family; a family adds what is its own.

Invariant: whatever would change the mathematics (another activation, a sliding window, another RoPE, biases, quantised
weights) is refused, never dropped: everything that transformers or vLLM would compute otherwise than the trainer, or
otherwise than each other.
"""

from typing import Any

from megarl.models.config_json import ModelError, read_boolean, read_integer, read_positive
from megarl.models.rope_parameters import read_rope
from megarl.models.shape import ModelShape

DTYPES = ("float32", "bfloat16", "float16")

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys in which vLLM looks for the model's length, the shortest of which counts."""


def read_decoder(raw: dict[str, Any], *, num_kv_heads: int, qkv_bias: bool) -> ModelShape:
    """The shape that all families write alike, with what one of them reads otherwise."""
    rope_theta, rope_scaling = read_rope(raw)
    return ModelShape(
        family=raw["model_type"],
        num_layers=read_integer(raw, "num_hidden_layers"),
        hidden_size=read_integer(raw, "hidden_size"),
        ffn_size=read_integer(raw, "intermediate_size"),
        num_heads=read_integer(raw, "num_attention_heads"),
        num_kv_heads=num_kv_heads,
        head_dim=_read_head_dim(raw),
        vocab_size=read_integer(raw, "vocab_size"),
        max_positions=_read_max_positions(raw),
        norm_eps=read_positive(raw, "rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=read_boolean(raw, "tie_word_embeddings"),
        qkv_bias=qkv_bias,
        hf_dtype=_read_dtype(raw),
    )


def refuse_unsupported(raw: dict[str, Any], *, architecture: str) -> None:
    """ModelError for what no family here supports. `architecture`: transformers' class for its causal models."""
    _refuse_other_class(raw, architecture)
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f'expected hidden_act "silu", found {activation!r}; use a SwiGLU checkpoint')
    for name in ("quantization_config", "compression_config"):
        if raw.get(name) is not None:
            raise ModelError(f"expected unquantised weights, found {name}; use the bfloat16 checkpoint of this model")
    if read_boolean(raw, "qk_norm"):
        raise ModelError("expected qk_norm false, found true; use a checkpoint without norms of queries and keys")
    if raw.get("is_causal", True) is not True:
        raise ModelError(f"expected is_causal true, found {raw['is_causal']!r}; use a causal language model")
    if raw.get("dual_chunk_attention_config") is not None:
        raise ModelError(
            "expected full attention, found dual_chunk_attention_config, which vLLM applies and transformers ignores; "
            "remove it from config.json to train at the original length"
        )


def refuse_sliding_window(raw: dict[str, Any], *, window: Any) -> None:
    """ModelError for attention that is not full in every layer. `window`: tokens, where one would be used."""
    layer_types = raw.get("layer_types")
    num_layers = read_integer(raw, "num_hidden_layers")
    if layer_types is not None and (not isinstance(layer_types, list) or len(layer_types) != num_layers):
        raise ModelError(
            f"expected layer_types of {num_layers} layers (num_hidden_layers), found {layer_types!r}; "
            "correct config.json"
        )
    others = sum(kind != "full_attention" for kind in layer_types or ())
    if others:
        raise ModelError(
            f"expected full attention in every layer, found {others} layers with another kind (layer_types); "
            "use a checkpoint without sliding-window attention"
        )
    if window:
        raise ModelError(
            f"expected full attention in every layer, found a sliding_window of {window}; "
            "use a checkpoint without sliding-window attention"
        )


def hidden_per_head(raw: dict[str, Any]) -> int:
    """Hidden size over heads, which must be whole even where heads are of another size (transformers)."""
    hidden_size, num_heads = read_integer(raw, "hidden_size"), read_integer(raw, "num_attention_heads")
    if hidden_size % max(1, num_heads):
        raise ModelError(
            f"hidden_size {hidden_size} is not a multiple of {num_heads} attention heads; "
            "correct the two numbers in config.json"
        )
    return hidden_size // max(1, num_heads)


def _refuse_other_class(raw: dict[str, Any], architecture: str) -> None:
    """vLLM chooses the model by `architectures`, transformers by `model_type`."""
    if raw.get("architectures") not in (None, [architecture]):
        raise ModelError(
            f'expected architectures ["{architecture}"] beside model_type "{raw["model_type"]}", found '
            f"{raw['architectures']!r}; use a causal language model's checkpoint"
        )
    if raw.get("text_config") is not None:
        raise ModelError("expected a text model's own config.json, found text_config; use a text model's checkpoint")


def _read_head_dim(raw: dict[str, Any]) -> int:
    """`head_dim`, else hidden size over heads."""
    quotient = hidden_per_head(raw)
    head_dim = quotient if raw.get("head_dim") is None else read_integer(raw, "head_dim")
    if head_dim % 2:
        raise ModelError(f"expected an even head_dim, found {head_dim}: rotary embeddings turn pairs; correct it")
    return head_dim


def _read_max_positions(raw: dict[str, Any]) -> int:
    longest = read_integer(raw, "max_position_embeddings")
    return min([longest, *(read_integer(raw, name) for name in _LENGTHS if raw.get(name) is not None)])


def _read_dtype(raw: dict[str, Any]) -> str | None:
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype is None:
        return None
    if dtype not in DTYPES:
        raise ModelError(f"expected dtype one of {', '.join(DTYPES)}, found {dtype!r}; use such a checkpoint")
    return str(dtype)
