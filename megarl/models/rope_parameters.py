"""The rotary embedding that a config.json asks for.

It may be said in four places, and the trainer must read what transformers and vLLM read (transformers 5.19,
`RotaryEmbeddingConfigMixin`; vLLM 0.32 takes the result):

* `rope_scaling`, where it is not empty, replaces `rope_parameters` whole, its `rope_theta` included;
* `rope_theta` and `partial_rotary_factor` inside that table come before those beside it; 10,000 and 1 where neither is;
* `rope_type` inside it; the older `type` where that is absent;
* `original_max_position_embeddings` beside the table comes before the one inside it; `max_position_embeddings` where
  neither is.

What none of the two would apply alike is refused. tests/models/test_rope_parameters.py compares with transformers.
"""

import math
from dataclasses import dataclass
from typing import Any

from megarl.models.config_json import ModelError, read_boolean, read_integer, read_number, read_positive

DEFAULT_THETA = 10_000.0

_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
"""Keys that transformers documents. vLLM reads others, which transformers ignores (mrope_section, use_fope, ...)."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnRopeScaling:
    """YaRN (arXiv 2309.00071, `rope_type: yarn`): slow frequencies divided by `factor`, fast ones kept."""

    factor: float
    original_max_positions: int
    beta_fast: float
    """Rotations over the original length above which a frequency is kept."""
    beta_slow: float
    """Rotations below which it is divided."""
    truncate: bool
    """Round the two bounds outwards to whole dimensions."""
    attention_factor: float
    """Multiplies rotated queries and keys, so that attention's logits grow by its square."""


RopeScaling = Llama3RopeScaling | LinearRopeScaling | YarnRopeScaling


def read_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a config.json; ModelError for what the trainer and vLLM would not compute alike."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ModelError(f"expected one set of RoPE parameters for all layers, found {rope!r}; use such a checkpoint")
    _refuse_unsupported(raw, rope)
    theta_owner = rope if "rope_theta" in rope else raw
    theta = read_positive(theta_owner, "rope_theta", default=DEFAULT_THETA)
    match _read_kind(rope):
        case "default":
            return theta, None
        case "linear":
            return theta, LinearRopeScaling(factor=_read_factor(rope))
        case "llama3":
            return theta, Llama3RopeScaling(
                factor=_read_factor(rope),
                low_freq_factor=read_positive(rope, "low_freq_factor"),
                high_freq_factor=read_positive(rope, "high_freq_factor"),
                original_max_positions=_read_original_length(raw, rope),
            )
        case "yarn":
            return theta, _read_yarn(raw, rope)
        case other:
            raise ModelError(
                f'expected rope_type "default", "linear", "llama3" or "yarn", found {other!r}; '
                "use a checkpoint with one of these, or remove the RoPE scaling to train at the original length"
            )


def _refuse_unsupported(raw: dict[str, Any], rope: dict[str, Any]) -> None:
    if unknown := sorted(rope.keys() - _KEYS):
        raise ModelError(
            f"RoPE parameters {', '.join(unknown)}: expected only those that transformers knows; "
            "remove them from config.json, or use a checkpoint without them"
        )
    # What is inside the table comes first; vLLM reads two older names outside it, too.
    outside = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
    places = [(rope, "partial_rotary_factor"), *((raw, name) for name in outside)]
    said = [(name, read_number(owner, name)) for owner, name in places if owner.get(name) is not None]
    for name, share in said[:1]:
        if share != 1.0:
            raise ModelError(f"expected {name} 1.0, found {share:g}; use a checkpoint that rotates whole heads")


def _read_kind(rope: dict[str, Any]) -> str:
    kinds = {name: rope[name] for name in ("rope_type", "type") if name in rope}
    if len(set(map(str, kinds.values()))) > 1:  # transformers takes the first, vLLM refuses
        raise ModelError(
            f"RoPE parameters: rope_type {kinds['rope_type']!r} and the older type {kinds['type']!r} disagree; "
            "keep rope_type alone in config.json"
        )
    return str(next(iter(kinds.values()), "default"))


def _read_factor(rope: dict[str, Any]) -> float:
    factor = read_number(rope, "factor")
    if factor < 1:
        raise ModelError(f"expected a RoPE factor of at least 1, found {factor:g}; correct config.json")
    return factor


def _read_original_length(raw: dict[str, Any], rope: dict[str, Any]) -> int:
    name = "original_max_position_embeddings"
    for owner in (raw, rope):
        if name in owner:
            return read_integer(owner, name)
    return read_integer(raw, "max_position_embeddings")


def _read_yarn(raw: dict[str, Any], rope: dict[str, Any]) -> YarnRopeScaling:
    factor = _read_factor(rope)
    return YarnRopeScaling(
        factor=factor,
        original_max_positions=_read_original_length(raw, rope),
        beta_fast=read_positive(rope, "beta_fast", default=32.0),
        beta_slow=read_positive(rope, "beta_slow", default=1.0),
        truncate=read_boolean(rope, "truncate") if "truncate" in rope else True,
        attention_factor=_read_attention_factor(rope, factor),
    )


def _read_attention_factor(rope: dict[str, Any], factor: float) -> float:
    """Given, or 0.1 m ln(factor) + 1 of `mscale` over that of `mscale_all_dim`, where m is 1 and the divisor too unless
    both are given (arXiv 2309.00071, equation 22; `_compute_yarn_parameters`)."""
    if rope.get("attention_factor") is not None:
        return read_positive(rope, "attention_factor")
    scales = [read_number(rope, name) for name in ("mscale", "mscale_all_dim") if rope.get(name) is not None]
    above, below = scales if len(scales) == 2 and all(scales) else (1.0, 0.0)
    return (0.1 * above * math.log(factor) + 1.0) / (0.1 * below * math.log(factor) + 1.0)
