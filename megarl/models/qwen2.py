"""Qwen2.5: transformers' and vLLM's Qwen2ForCausalLM. Queries, keys and values have biases, whatever attention_bias
says."""

from typing import Any

from megarl.models import dense
from megarl.models.config_json import ModelError, read_boolean, read_integer
from megarl.models.decoder_config import hidden_per_head, read_decoder, refuse_sliding_window, refuse_unsupported
from megarl.models.family import FamilyTable
from megarl.models.shape import ModelShape

MODEL_TYPE = "qwen2"
MODELS = "Qwen2.5"
TABLE: FamilyTable = dense


def read_shape(raw: dict[str, Any]) -> ModelShape:
    """The model of a config.json; ModelError when it is not supported."""
    refuse_unsupported(raw, architecture="Qwen2ForCausalLM")
    refuse_sliding_window(raw, window=_read_window(raw))
    _check_head_dim(raw)
    return read_decoder(raw, num_kv_heads=_read_kv_heads(raw), qkv_bias=True)


def _read_window(raw: dict[str, Any]) -> Any:
    """A window is named even where none is used; transformers' default is 4096. vLLM slides in every layer, whatever
    max_window_layers says."""
    window = raw.get("sliding_window", 4096)
    return window if window and read_boolean(raw, "use_sliding_window") else None


def _read_kv_heads(raw: dict[str, Any]) -> int:
    """transformers: null means multi-head attention, absence a constant of 32, which is refused."""
    name = "num_key_value_heads"
    return read_integer(raw, "num_attention_heads" if name in raw and raw[name] is None else name)


def _check_head_dim(raw: dict[str, Any]) -> None:
    expected = hidden_per_head(raw)
    if raw.get("head_dim") is not None and (found := read_integer(raw, "head_dim")) != expected:
        raise ModelError(
            f"expected head_dim {expected} for qwen2, hidden_size over num_attention_heads, which is what vLLM takes; "
            f"found {found}; use a checkpoint with such heads"
        )
