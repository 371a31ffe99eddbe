"""Reading config.json: both spellings, and everything that must be refused."""

import json

import pytest

from megarl.models.families import parse_model_config, read_model_shape
from megarl.models.rope_parameters import LinearRopeScaling, Llama3RopeScaling
from megarl.models.shape import ModelError

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}
QWEN2 = LLAMA | {
    "model_type": "qwen2",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 1,
    "tie_word_embeddings": False,
}
LLAMA3_SCALING = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


def test_llama_config_with_llama3_scaling_in_both_spellings():
    old = parse_model_config(LLAMA | {"rope_scaling": LLAMA3_SCALING})
    new_config = without(LLAMA, "rope_theta", "torch_dtype") | {
        "dtype": "bfloat16",
        "rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0},
    }
    assert old == parse_model_config(new_config)
    assert (old.family, old.num_kv_heads, old.heads_per_group, old.head_dim) == ("llama", 2, 4, 8)
    assert (old.rope_theta, old.hf_dtype, old.tied_embeddings, old.qkv_bias) == (500000.0, "bfloat16", True, False)
    assert old.rope_scaling == Llama3RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )


def test_qwen2_has_qkv_bias_and_an_unused_window_is_accepted():
    shape = parse_model_config(QWEN2)
    assert (shape.family, shape.qkv_bias, shape.tied_embeddings) == ("qwen2", True, False)


def test_defaults_and_explicit_head_dim():
    shape = parse_model_config(
        without(LLAMA, "num_key_value_heads", "rope_theta", "torch_dtype", "tie_word_embeddings", "rms_norm_eps")
        | {"head_dim": 16}
    )
    assert (shape.num_kv_heads, shape.head_dim, shape.rope_theta) == (8, 16, 10_000.0)
    assert (shape.hf_dtype, shape.tied_embeddings, shape.norm_eps) == (None, False, 1e-6)


def test_a_window_that_nothing_uses_is_accepted():
    for more in ({"use_sliding_window": True, "sliding_window": None}, {"layer_types": ["full_attention"] * 2}):
        assert parse_model_config(QWEN2 | more) == parse_model_config(QWEN2)


def test_dtype_comes_before_torch_dtype():
    assert parse_model_config(LLAMA | {"dtype": "float32"}).hf_dtype == "float32"


def test_the_shortest_length_counts():
    """vLLM looks for the length under several names."""
    assert parse_model_config(LLAMA).context_tokens == 2048
    assert parse_model_config(LLAMA | {"max_seq_len": 512}).context_tokens == 512
    assert parse_model_config(LLAMA | {"max_seq_len": 4096}).context_tokens == 2048


def test_linear_scaling_in_the_oldest_spelling():
    shape = parse_model_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}})
    assert shape.rope_scaling == LinearRopeScaling(factor=4.0)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_what_transformers_writes_is_read(tmp_path, name):
    from transformers import LlamaConfig, Qwen2Config

    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[name](
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=4,
        rope_parameters=LLAMA3_SCALING | {"rope_theta": 1e6},
        dtype="float32",
    )
    config.save_pretrained(tmp_path)
    shape = read_model_shape(tmp_path)
    assert (shape.family, shape.head_dim, shape.rope_theta, shape.hf_dtype) == (name, 8, 1e6, "float32")
    assert shape.rope_scaling is not None
    assert shape.vocab_size == config.vocab_size


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LLAMA | {"model_type": "gemma2"}, ['"llama"', "'gemma2'"]),
        (LLAMA | {"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        (LLAMA | {"attention_bias": True}, ["attention_bias"]),
        (LLAMA | {"mlp_bias": True}, ["mlp_bias"]),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, ["'dynamic'", '"yarn"']),
        (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, ["number factor"]),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["one set of RoPE"]),
        (LLAMA | {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        (QWEN2 | {"use_sliding_window": True}, ["sliding_window of 4096"]),
        (without(QWEN2, "sliding_window") | {"use_sliding_window": True}, ["sliding_window of 4096"]),
        # transformers slides from max_window_layers on, which is no layer here; vLLM in all of them.
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 2}, ["sliding_window of 4096"]),
        (LLAMA | {"sliding_window": 512}, ["sliding_window of 512"]),
        (QWEN2 | {"layer_types": ["full_attention"]}, ["layer_types of 2 layers"]),
        (QWEN2 | {"head_dim": 16}, ["head_dim 8", "found 16"]),
        (LLAMA | {"head_dim": 7}, ["even head_dim", "7"]),
        (LLAMA | {"hidden_size": 60, "head_dim": 16}, ["hidden_size 60"]),  # transformers refuses it too
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForCausalLM", "SequenceClass"]),
        (QWEN2 | {"text_config": {"hidden_size": 1}}, ["text_config"]),
        (QWEN2 | {"dual_chunk_attention_config": {"chunk_size": 1}}, ["dual_chunk_attention_config"]),
        (QWEN2 | {"qk_norm": True}, ["qk_norm"]),
        (QWEN2 | {"is_causal": False}, ["is_causal"]),
        (LLAMA | {"logit_scale": 0.5}, ["logit_scale", "0.5"]),
        (LLAMA | {"bias": True}, ["bias"]),
        (LLAMA | {"compression_config": {"x": 1}}, ["compression_config"]),
        (LLAMA | {"rms_norm_eps": None}, ["rms_norm_eps"]),
        (QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]}, ["1 layers"]),
        (LLAMA | {"quantization_config": {"quant_method": "fp8"}}, ["quantization_config"]),
        (LLAMA | {"torch_dtype": "float8_e4m3fn"}, ["float8_e4m3fn"]),
        (LLAMA | {"num_key_value_heads": 3}, ["8 attention heads", "3 key-value heads"]),
        (without(QWEN2, "num_key_value_heads"), ["integer num_key_value_heads"]),
        (LLAMA | {"hidden_size": 65}, ["hidden_size 65"]),
        (without(LLAMA, "vocab_size"), ["integer vocab_size", "None"]),
        (LLAMA | {"num_hidden_layers": 0}, ["num_layers", "0"]),
        (LLAMA | {"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
    ],
)
def test_unsupported_configs_are_refused(config, words):
    with pytest.raises(ModelError) as error:
        parse_model_config(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_files_that_are_absent_or_broken(tmp_path):
    with pytest.raises(ModelError, match=r"found no .*config\.json"):
        read_model_shape(tmp_path)
    file = tmp_path / "config.json"
    for content, words in (("{", "not readable JSON"), ("[]", "found list")):
        file.write_text(content)
        with pytest.raises(ModelError, match=words):
            read_model_shape(tmp_path)
    file.write_text(json.dumps(LLAMA | {"model_type": "opt"}))
    with pytest.raises(ModelError, match=r"config\.json: expected model_type"):
        read_model_shape(tmp_path)
