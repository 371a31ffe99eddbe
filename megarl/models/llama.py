"""Llama 3 and SmolLM2: transformers' and vLLM's LlamaForCausalLM."""

from typing import Any

from megarl.models import dense
from megarl.models.config_json import ModelError, read_boolean, read_integer
from megarl.models.decoder_config import read_decoder, refuse_sliding_window, refuse_unsupported
from megarl.models.family import FamilyTable
from megarl.models.shape import ModelShape

MODEL_TYPE = "llama"
MODELS = "Llama 3, SmolLM2"
TABLE: FamilyTable = dense


def read_shape(raw: dict[str, Any]) -> ModelShape:
    """The model of a config.json; ModelError when it is not supported."""
    refuse_unsupported(raw, architecture="LlamaForCausalLM")
    for name in ("attention_bias", "mlp_bias", "bias"):
        if read_boolean(raw, name):
            raise ModelError(f"expected {name} false for llama, found true; use a checkpoint without biases")
    if (scale := raw.get("logit_scale", 1.0)) != 1.0:
        raise ModelError(f"expected logit_scale 1.0, found {scale!r}, which vLLM applies; use a checkpoint without it")
    # It names a window only where vLLM, and it alone, would use it.
    refuse_sliding_window(raw, window=raw.get("sliding_window"))
    return read_decoder(raw, num_kv_heads=_read_kv_heads(raw), qkv_bias=False)


def _read_kv_heads(raw: dict[str, Any]) -> int:
    """transformers: null and absence mean multi-head attention."""
    name = "num_key_value_heads"
    return read_integer(raw, "num_attention_heads" if raw.get(name) is None else name)
