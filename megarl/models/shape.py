"""What a model is, read once from a Hugging Face config.json.

Invariants: a `ModelShape` describes a model this package can train exactly; whatever in config.json would change the
mathematics (another activation, a sliding window, another RoPE, biases, quantised weights) is refused, never dropped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Family = Literal["llama", "qwen2"]

DTYPES = ("float32", "bfloat16", "float16")


class ModelError(ValueError):
    """The model or its layout cannot work; the text says what was expected, what was found and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`); wavelengths are in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRopeScaling:
    """Positions divided by `factor` (`rope_type: linear`)."""

    factor: float


RopeScaling = Llama3RopeScaling | LinearRopeScaling


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
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


def read_model_shape(path: str | Path) -> ModelShape:
    """Read the shape of the checkpoint in directory `path` from its config.json.

    Both spellings are read: `torch_dtype` and `rope_theta` + `rope_scaling` (transformers 4), `dtype` and
    `rope_parameters` (transformers 5). Raises ModelError for a missing or broken file and for every feature that is
    not supported.
    """
    file = Path(path) / "config.json"
    raw = _load_json(file)
    try:
        return parse_model_config(raw)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def parse_model_config(raw: dict[str, Any]) -> ModelShape:
    """The shape described by the content of a config.json; ModelError when it is not supported."""
    family = _read_family(raw)
    _refuse_unsupported(raw, family)
    hidden_size, num_heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    num_layers, max_positions = _integer(raw, "num_hidden_layers"), _integer(raw, "max_position_embeddings")
    rope_theta, rope_scaling = _read_rope(raw, max_positions)
    return ModelShape(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_size=_integer(raw, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_read_kv_heads(raw, family, num_heads),
        head_dim=_read_head_dim(raw, hidden_size, num_heads),
        vocab_size=_integer(raw, "vocab_size"),
        max_positions=max_positions,
        norm_eps=_number(raw, "rms_norm_eps", default=1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied_embeddings=_boolean(raw, "tie_word_embeddings"),
        qkv_bias=family == "qwen2",
        hf_dtype=_read_dtype(raw),
    )


def _load_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"expected a Hugging Face checkpoint directory with config.json, found no {file}; "
            "point the model path at such a directory"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is not readable JSON ({error}); restore the file") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(raw).__name__}; restore the file")
    return raw


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
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f'expected hidden_act "silu", found {activation!r}; use a SwiGLU checkpoint')
    if raw.get("quantization_config") is not None:
        raise ModelError(
            "expected unquantised weights, found quantization_config; use the bfloat16 checkpoint of this model"
        )
    if family == "llama":
        for name in ("attention_bias", "mlp_bias"):
            if _boolean(raw, name):
                raise ModelError(f"expected {name} false for llama, found true; use a checkpoint without biases")
    _refuse_sliding_window(raw)


def _refuse_sliding_window(raw: dict[str, Any]) -> None:
    """Qwen2 names a window even where it uses none: only a window that some layer applies is refused."""
    layer_types = raw.get("layer_types")
    if layer_types is not None:
        sliding = sum(kind != "full_attention" for kind in layer_types)
    elif _boolean(raw, "use_sliding_window") and raw.get("sliding_window") is not None:
        # transformers: layers from max_window_layers on slide; 28 is its default.
        sliding = _integer(raw, "num_hidden_layers") - int(raw.get("max_window_layers", 28))
    else:
        sliding = 0
    if sliding > 0:
        raise ModelError(
            f"expected full attention in every layer, found {sliding} layers with another kind "
            "(layer_types, use_sliding_window); use a checkpoint without sliding-window attention"
        )


def _read_kv_heads(raw: dict[str, Any], family: Family, num_heads: int) -> int:
    """transformers: null means multi-head attention; so does absence for llama, but for qwen2 a constant of 32."""
    name = "num_key_value_heads"
    if raw.get(name) is None and (name in raw or family == "llama"):
        return num_heads
    return _integer(raw, name)


def _read_head_dim(raw: dict[str, Any], hidden_size: int, num_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return _integer(raw, "head_dim")
    if hidden_size % num_heads:
        raise ModelError(
            f"hidden_size {hidden_size} is not a multiple of {num_heads} attention heads; "
            "set head_dim in config.json or correct the two numbers"
        )
    return hidden_size // num_heads


def _read_rope(raw: dict[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ModelError(f"expected one set of RoPE parameters for all layers, found {rope!r}; use such a checkpoint")
    theta_owner = rope if rope.get("rope_theta") is not None else raw
    # 10000 is what both families' configs mean when they name no base.
    theta = _number(theta_owner, "rope_theta", default=10_000.0)
    for owner in (rope, raw):
        if _number(owner, "partial_rotary_factor", default=1.0) != 1.0:
            raise ModelError(
                f"expected partial_rotary_factor 1.0, found {owner['partial_rotary_factor']}; "
                "use a checkpoint that rotates whole heads"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default" | None:
            return theta, None
        case "linear":
            return theta, LinearRopeScaling(factor=_number(rope, "factor"))
        case "llama3":
            return theta, Llama3RopeScaling(
                factor=_number(rope, "factor"),
                low_freq_factor=_number(rope, "low_freq_factor"),
                high_freq_factor=_number(rope, "high_freq_factor"),
                original_max_positions=int(
                    _number(rope, "original_max_position_embeddings", default=float(max_positions))
                ),
            )
        case other:
            raise ModelError(
                f'expected rope_type "default", "linear" or "llama3", found {other!r}; '
                "use a checkpoint with one of these, or remove the RoPE scaling to train at the original length"
            )


def _read_dtype(raw: dict[str, Any]) -> str | None:
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype is None:
        return None
    if dtype not in DTYPES:
        raise ModelError(f"expected dtype one of {', '.join(DTYPES)}, found {dtype!r}; use such a checkpoint")
    return str(dtype)


def _integer(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"expected an integer {name}, found {value!r}; correct config.json")
    return value


def _number(raw: dict[str, Any], name: str, *, default: float | None = None) -> float:
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ModelError(f"expected a number {name}, found {value!r}; correct config.json")
    return float(value)


def _boolean(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ModelError(f"expected true or false for {name}, found {value!r}; correct config.json")
    return value
