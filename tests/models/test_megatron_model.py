"""The weight table against Megatron-core's own GPTModel: names, shapes, and what the filled model computes.

The reference for the numbers is transformers: a wrong order of rows anywhere changes the logits.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.models.families import read_model_shape
from megarl.models.layout import layout_of
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from tests.dist.gloo import run_on_ranks

VOCAB = 61  # no multiple of 8: every tensor size pads


def write_model(path: Path, *, family: str, tied: bool, kv_heads: int = 2, layers: int = 2) -> None:
    """A tiny random checkpoint by transformers, with norms and biases away from 1 and 0."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(path)


def build_megatron(path: str, tensor: int, pipeline: int, virtual: int):
    """This rank's chunks of a real GPTModel with uninitialised weights, its shape and its layout."""
    import torch.nn.functional as F
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megarl.parallel.device import prepare_process

    prepare_process()
    interleaved = virtual if virtual > 1 else None
    parallel_state.initialize_model_parallel(tensor, pipeline, interleaved)
    model_parallel_cuda_manual_seed(0)
    shape = read_model_shape(path)
    layout = layout_of(
        shape,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=tensor,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=pipeline,
        virtual=virtual,
    )
    config = TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=interleaved,
        pipeline_dtype=torch.float32,
        perform_initialization=False,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
    chunks = [
        GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=layout.padded_vocab,
            max_sequence_length=shape.max_positions,
            pre_process=layout.has_embedding and chunk == 0,
            post_process=layout.has_output and chunk == virtual - 1,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=int(shape.rope_theta),
            vp_stage=chunk if virtual > 1 else None,
        )
        for chunk in range(virtual)
    ]
    return chunks, shape, layout


def parameters_and_table(path: str, tensor: int, pipeline: int, virtual: int):
    """What the model has and what the table says, as {(chunk, name): shape}; global layer numbers of both."""
    chunks, shape, layout = build_megatron(path, tensor, pipeline, virtual)
    model = {
        (index, name): tuple(parameter.shape)
        for index, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }
    layers = [[layer.layer_number - 1 for layer in chunk.decoder.layers] for chunk in chunks]
    table = {(entry.chunk, entry.name): entry.shape for entry in list_parameters(shape, layout)}
    return model, table, layers, [list(chunk) for chunk in layout.layers]


def fill_and_run(path: str, tokens: torch.Tensor, tensor: int) -> torch.Tensor:
    """Logits [batch, tokens, padded vocabulary] of the real model filled from the checkpoint."""
    (model,), shape, layout = build_megatron(path, tensor, 1, 1)
    parameters = dict(model.named_parameters())
    with open_hf_checkpoint(path) as checkpoint:
        checkpoint.validate(hf_tensors(shape))
        for entry in list_parameters(shape, layout):
            fill_parameter(parameters[entry.name], entry, checkpoint.read)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    hidden = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    with torch.no_grad():
        local = model.eval()(tokens, positions, hidden)
    shards = [torch.empty_like(local) for _ in range(tensor)]
    dist.all_gather(shards, local.contiguous())
    return torch.cat(shards, dim=-1)


@pytest.mark.parametrize(
    ("family", "tied", "tensor", "kv_heads"),
    [
        ("qwen2", True, 1, 2),
        pytest.param("qwen2", False, 2, 2, marks=pytest.mark.slow),
        pytest.param("llama", False, 4, 2, marks=pytest.mark.slow),  # fewer key-value heads than tensor ranks
    ],
)
def test_filled_model_gives_the_logits_of_transformers(tmp_path, family, tied, tensor, kv_heads):
    from transformers import AutoModelForCausalLM

    write_model(tmp_path, family=family, tied=tied, kv_heads=kv_heads)
    tokens = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(tokens).logits
    for logits in run_on_ranks(fill_and_run, tensor, str(tmp_path), tokens, tensor):
        assert expected.std() > 0.5  # the model is not flat, so a wrong row would show
        torch.testing.assert_close(logits[..., :VOCAB], expected, rtol=2e-4, atol=2e-4)
        assert torch.equal(logits[..., VOCAB:], torch.zeros_like(logits[..., VOCAB:]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tied", "tensor", "pipeline", "virtual"),
    [("qwen2", True, 1, 2, 2), ("llama", True, 2, 2, 1), ("qwen2", False, 2, 2, 2), ("qwen2", False, 4, 1, 1)],
)
def test_table_names_every_parameter_of_every_rank(tmp_path, family, tied, tensor, pipeline, virtual):
    write_model(tmp_path, family=family, tied=tied, layers=8)
    ranks = run_on_ranks(parameters_and_table, tensor * pipeline, str(tmp_path), tensor, pipeline, virtual)
    for model, table, model_layers, table_layers in ranks:
        assert table == model
        assert table_layers == model_layers
