"""Base, scaling and frequencies of a config.json are those that transformers takes from it, wherever they are said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.families import parse_model_config
from megarl.models.rope import attention_scale, rope_inverse_frequencies
from megarl.models.rope_parameters import YarnRopeScaling, read_rope
from megarl.models.shape import ModelError

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 5e5}


def transformers_rope(raw: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Inverse frequencies and attention factor of transformers' model of this config.json."""
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    raw = json.loads(json.dumps(raw))  # transformers writes into the tables it is given
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    rotary = {"llama": LlamaRotaryEmbedding, "qwen2": Qwen2RotaryEmbedding}[config.model_type](config)
    return rotary.inv_freq, float(rotary.attention_scaling)


def assert_as_transformers(raw: dict[str, Any]) -> None:
    shape = parse_model_config(raw)
    frequencies, factor = transformers_rope(raw)
    torch.testing.assert_close(rope_inverse_frequencies(shape), frequencies, rtol=2e-7, atol=0)
    scale = attention_scale(shape) or shape.head_dim**-0.5
    assert scale == pytest.approx(factor**2 * shape.head_dim**-0.5, rel=1e-6)


def test_the_case_that_transformers_5_writes(tmp_path: Path) -> None:
    """A saved config has `rope_parameters`; who adds YaRN as the model cards say has `rope_scaling` beside it."""
    raw = SHAPE | {"model_type": "qwen2", "rope_parameters": DEFAULT, "rope_scaling": YARN}
    assert_as_transformers(raw)
    # rope_scaling replaces the other table with its rope_theta.
    assert read_rope(raw) == (
        10_000.0,
        YarnRopeScaling(
            factor=4.0,
            original_max_positions=128,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=True,
            attention_factor=pytest.approx(1.1386294),  # 0.1 ln 4 + 1
        ),
    )
    assert parse_model_config(raw).context_tokens == 512
    assert parse_model_config(raw | {"max_position_embeddings": 600}).context_tokens == 512  # 4 x 128


tables = st.sampled_from([
    None,
    {},
    DEFAULT,
    {"rope_type": "default"},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 4, "rope_theta": 1e6},
    LLAMA3,
    LLAMA3 | {"original_max_position_embeddings": 64, "rope_theta": 5e5},
    YARN,
    {"type": "yarn", "factor": 8.0, "rope_theta": 1e6},
    YARN | {"attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2},
    YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False},
    YARN | {"mscale": 0.7},
    YARN | {"factor": 1.0, "beta_fast": 64.0},
    YARN | {"attention_factor": None, "partial_rotary_factor": 1.0},
])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(["llama", "qwen2"]),
    rope_parameters=tables,
    rope_scaling=tables,
    outside=st.fixed_dictionaries(
        {},
        optional={
            "rope_theta": st.sampled_from([1e4, 5e5, 1_000_000]),
            "original_max_position_embeddings": st.just(256),
            "partial_rotary_factor": st.just(1.0),
        },
    ),
)
def test_every_place_has_transformers_rank(family, rope_parameters, rope_scaling, outside) -> None:
    raw = SHAPE | {"model_type": family, "rope_parameters": rope_parameters, "rope_scaling": rope_scaling} | outside
    assert_as_transformers({name: value for name, value in raw.items() if value is not None or name in outside})


def test_vllm_rotates_by_the_same_frequencies() -> None:
    """vLLM's own formula of YaRN, which is built inside an engine."""
    from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding as Yarn

    shape = parse_model_config(SHAPE | {"model_type": "llama", "rope_scaling": YARN})
    yarn = Yarn.__new__(Yarn)
    torch.nn.Module.__init__(yarn)
    yarn.base, yarn.rotary_dim, yarn.max_position_embeddings = 10_000.0, 32, 128
    yarn.beta_fast, yarn.beta_slow, yarn.truncate = 32, 1, True
    torch.testing.assert_close(rope_inverse_frequencies(shape), yarn._compute_inv_freq(4.0), rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rope_scaling": YARN | {"type": "linear"}}, ["rope_type 'yarn'", "type 'linear'", "keep rope_type"]),
        ({"rope_scaling": YARN | {"factor": None}}, ["number factor", "None"]),
        ({"rope_scaling": YARN | {"factor": 0.5}}, ["at least 1", "0.5"]),
        ({"rope_scaling": YARN | {"attention_factor": -1.0}}, ["attention_factor above 0"]),
        ({"rope_scaling": YARN | {"mrope_section": [1, 1, 2]}}, ["mrope_section", "remove"]),
        ({"rope_parameters": {"rope_theta": None}}, ["number rope_theta", "None"]),
        ({"rope_theta": 0}, ["rope_theta above 0"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor 1.0", "0.5"]),
        ({"rotary_pct": 0.25}, ["rotary_pct 1.0", "0.25"]),  # vLLM would rotate a quarter, transformers the whole
        ({"rope_scaling": {"rope_type": "longrope"}}, ["'longrope'"]),
    ],
)
def test_what_both_would_not_compute_alike_is_refused(more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        parse_model_config(SHAPE | {"model_type": "llama"} | more)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
