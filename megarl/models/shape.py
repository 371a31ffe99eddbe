"""What a model is, read once from a Hugging Face config.json.

Invariants: a `ModelShape` describes a model this package can train exactly; whatever in config.json would change the
mathematics (another activation, a sliding window, another RoPE, biases, quantised weights) is refused, never dropped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megarl.models.config_json import ModelError as ModelError  # noqa: PLC0414  (exported)
from megarl.models.config_json import load_json, read_boolean, read_integer, read_positive
from megarl.models.rope_parameters import LinearRopeScaling, RopeScaling, YarnRopeScaling, read_rope

Family = Literal["llama", "qwen2"]

DTYPES = ("float32", "bfloat16", "float16")

_ARCHITECTURES: dict[Family, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys in which vLLM looks for the model's length, the shortest of which counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A pre-norm decoder with grouped-query attention, SwiGLU and RMSNorm: Llama 3, SmolLM2, Qwen2.5."""

    family: Family
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the embedding as the checkpoint has them, unpadded; may exceed the tokenizer's vocabulary."""
    max_positions: int
    """Length that config.json names; the shortest where it names several."""
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    """The output layer is the embedding; the checkpoint has no `lm_head.weight`."""
    qkv_bias: bool
    hf_dtype: str | None
    """Dtype config.json names for the weights; None when it names none."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "hidden_size", "ffn_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, found {getattr(self, name)}; correct config.json")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} attention heads are not a multiple of {self.num_kv_heads} key-value heads; "
                "correct num_attention_heads or num_key_value_heads in config.json"
            )

    @property
    def context_tokens(self) -> int:
        """Longest sequence that trainer and vLLM can take: linear scaling stretches `max_positions`, which the other
        kinds leave as it is; vLLM rotates `factor` times YaRN's original length and no more."""
        match self.rope_scaling:
            case LinearRopeScaling(factor=factor):
                return int(self.max_positions * factor)
            case YarnRopeScaling(factor=factor, original_max_positions=original):
                return min(self.max_positions, int(original * factor))
            case _:
                return self.max_positions

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


def read_model_shape(path: str | Path) -> ModelShape:
    """Read the shape of the checkpoint in directory `path` from its config.json, or of a config.json itself.

    Both spellings are read: `torch_dtype` and `rope_theta` + `rope_scaling` (transformers 4), `dtype` and
    `rope_parameters` (transformers 5); where both are there the one counts that transformers takes. Raises ModelError
    for a missing or broken file and for every feature that is not supported.
    """
    file = Path(path)
    file = file if file.suffix == ".json" else file / "config.json"
    raw = load_json(file)
    try:
        return parse_model_config(raw)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def parse_model_config(raw: dict[str, Any]) -> ModelShape:
    """The shape described by the content of a config.json; ModelError when it is not supported."""
    family = _read_family(raw)
    _refuse_unsupported(raw, family)
    hidden_size, num_heads = read_integer(raw, "hidden_size"), read_integer(raw, "num_attention_heads")
    num_layers = read_integer(raw, "num_hidden_layers")
    rope_theta, rope_scaling = read_rope(raw)
    return ModelShape(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_size=read_integer(raw, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_read_kv_heads(raw, family, num_heads),
        head_dim=_read_head_dim(raw, family, hidden_size, num_heads),
        vocab_size=read_integer(raw, "vocab_size"),
        max_positions=_read_max_positions(raw),
        norm_eps=read_positive(raw, "rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=read_boolean(raw, "tie_word_embeddings"),
        qkv_bias=family == "qwen2",
        hf_dtype=_read_dtype(raw),
    )


def _read_family(raw: dict[str, Any]) -> Family:
    match raw.get("model_type"):
        case "llama":
            return "llama"
        case "qwen2":
            return "qwen2"
        case other:
            raise ModelError(
                f'expected model_type "llama" (Llama 3, SmolLM2) or "qwen2" (Qwen2.5), found {other!r}; '
                "use a checkpoint of one of these families"
            )


def _refuse_unsupported(raw: dict[str, Any], family: Family) -> None:
    """Everything that transformers or vLLM would compute otherwise than the trainer, or otherwise than each other."""
    _refuse_other_class(raw, family)
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f'expected hidden_act "silu", found {activation!r}; use a SwiGLU checkpoint')
    for name in ("quantization_config", "compression_config"):
        if raw.get(name) is not None:
            raise ModelError(f"expected unquantised weights, found {name}; use the bfloat16 checkpoint of this model")
    # Qwen2 knows none of these, and its queries, keys and values have biases whatever attention_bias says.
    for name in ("attention_bias", "mlp_bias", "bias") if family == "llama" else ():
        if read_boolean(raw, name):
            raise ModelError(f"expected {name} false for llama, found true; use a checkpoint without biases")
    if read_boolean(raw, "qk_norm"):
        raise ModelError("expected qk_norm false, found true; use a checkpoint without norms of queries and keys")
    if raw.get("is_causal", True) is not True:
        raise ModelError(f"expected is_causal true, found {raw['is_causal']!r}; use a causal language model")
    if raw.get("dual_chunk_attention_config") is not None:
        raise ModelError(
            "expected full attention, found dual_chunk_attention_config, which vLLM applies and transformers ignores; "
            "remove it from config.json to train at the original length"
        )
    if family == "llama" and (scale := raw.get("logit_scale", 1.0)) != 1.0:
        raise ModelError(f"expected logit_scale 1.0, found {scale!r}, which vLLM applies; use a checkpoint without it")
    _refuse_sliding_window(raw, family)


def _refuse_other_class(raw: dict[str, Any], family: Family) -> None:
    """vLLM chooses the model by `architectures`, transformers by `model_type`."""
    expected = _ARCHITECTURES[family]
    if raw.get("architectures") not in (None, [expected]):
        raise ModelError(
            f'expected architectures ["{expected}"] beside model_type "{family}", found {raw["architectures"]!r}; '
            "use a causal language model's checkpoint"
        )
    if raw.get("text_config") is not None:
        raise ModelError("expected a text model's own config.json, found text_config; use a text model's checkpoint")


def _refuse_sliding_window(raw: dict[str, Any], family: Family) -> None:
    """Qwen2 names a window even where it uses none; llama names one only where vLLM, and it alone, would use it."""
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
    # transformers' default window is 4096. vLLM slides in every layer, whatever max_window_layers says.
    window = raw.get("sliding_window", 4096 if family == "qwen2" else None)
    if window and (family == "llama" or read_boolean(raw, "use_sliding_window")):
        raise ModelError(
            f"expected full attention in every layer, found a sliding_window of {window}; "
            "use a checkpoint without sliding-window attention"
        )


def _read_kv_heads(raw: dict[str, Any], family: Family, num_heads: int) -> int:
    """transformers: null means multi-head attention; so does absence for llama, but for qwen2 a constant of 32."""
    name = "num_key_value_heads"
    if raw.get(name) is None and (name in raw or family == "llama"):
        return num_heads
    return read_integer(raw, name)


def _read_head_dim(raw: dict[str, Any], family: Family, hidden_size: int, num_heads: int) -> int:
    """llama's own `head_dim`, else hidden size over heads, which must be whole in any case (transformers)."""
    if hidden_size % max(1, num_heads):
        raise ModelError(
            f"hidden_size {hidden_size} is not a multiple of {num_heads} attention heads; "
            "correct the two numbers in config.json"
        )
    quotient = hidden_size // max(1, num_heads)
    head_dim = quotient if raw.get("head_dim") is None else read_integer(raw, "head_dim")
    if family == "qwen2" and head_dim != quotient:
        raise ModelError(
            f"expected head_dim {quotient} for qwen2, hidden_size over num_attention_heads, which is what vLLM takes; "
            f"found {head_dim}; use a checkpoint with such heads"
        )
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
