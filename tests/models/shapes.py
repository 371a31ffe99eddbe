"""Model shapes for tests."""

import json
from pathlib import Path
from typing import Any

from megarl.models.families import parse_model_config
from megarl.models.shape import ModelShape

CONFIGS = Path(__file__).parents[2] / "configs" / "shapes"
"""config.json of real checkpoints (Qwen2.5, arXiv 2412.15115; Llama 3, arXiv 2407.21783), by model name."""


def real_shape(name: str) -> ModelShape:
    """The shape of a real model, e.g. "llama-3-70b"."""
    return parse_model_config(json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")))


def make_shape(**changes: Any) -> ModelShape:
    """A small llama shape with some fields changed."""
    values: dict[str, Any] = {
        "family": "llama",
        "num_layers": 2,
        "hidden_size": 6,
        "ffn_size": 8,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 3,
        "vocab_size": 11,
        "max_positions": 32,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "tied_embeddings": False,
        "qkv_bias": False,
        "hf_dtype": "bfloat16",
    }
    return ModelShape(**{**values, **changes})
