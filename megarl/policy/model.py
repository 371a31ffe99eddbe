"""The Megatron-core model of a policy rank, built from a Hugging Face shape.

R = response tokens of a micro-batch. The head runs on the rows that predict a response token and on no others, on this
rank's vocabulary shard [R, V / T], which is never gathered and, with the fused head, never exists.
"""

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megarl.config.base import ConfigError
from megarl.config.policy import ModelConfig, ParallelConfig, PolicyConfig
from megarl.models.layout import RankLayout
from megarl.models.rope import attention_scale, rope_inverse_frequencies
from megarl.models.shape import ModelShape
from megarl.parallel.batches import PackedMicroBatch
from megarl.parallel.device import cuda_present, multiplies_bfloat16
from megarl.parallel.fused_linear import fused_linear_logp_entropy
from megarl.parallel.linear import linear
from megarl.parallel.rotary import Rotation, rotation_at
from megarl.parallel.vocab import TokenDistribution, vocab_parallel_logp_entropy
from megarl.policy.layers import PackedAttention, PackedSequences, RmsNorm, WidenedColumnLinear, WidenedRowLinear

_FREE_FIELDS = {
    "apply_rope_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "persist_layer_norm",
    "gradient_accumulation_fusion",
}
"""Fields set below that change speed and not the mathematics; overrides may set them and those not set here."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def uses_transformer_engine() -> bool:
    """Whether the layers are Transformer Engine's: where CUDA and the package are present."""
    return cuda_present() and importlib.util.find_spec("transformer_engine") is not None


def build_transformer_config(
    shape: ModelShape, *, model: ModelConfig, parallel: ParallelConfig, policy: PolicyConfig
) -> TransformerConfig:
    """Megatron-core's config of this model; ConfigError for an override it does not have or refuses."""
    dtype = DTYPES[model.dtype]
    values: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_size,
        "num_attention_heads": shape.num_heads,
        "num_query_groups": shape.num_kv_heads,
        "kv_channels": shape.head_dim,
        "softmax_scale": attention_scale(shape),
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "sequence_parallel": parallel.sequence,
        "pipeline_dtype": dtype,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # Packed micro-batches differ in length; the schedule sends each length ahead of the activations.
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
        # The loss carries the global normaliser (objective/loss.py); Megatron must not divide again.
        "calculate_per_token_loss": True,
        # Every weight is read from the checkpoint.
        "perform_initialization": False,
        # Fused kernels go through torch.compile or CUDA extensions.
        "bias_activation_fusion": cuda_present(),
        "bias_dropout_fusion": cuda_present(),
        # See PolicyModel: without Transformer Engine the rotation is ours.
        "apply_rope_fusion": uses_transformer_engine(),
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        **_recompute_fields(policy),
    }
    return _with_overrides(values, policy.megatron_overrides)


def _recompute_fields(policy: PolicyConfig) -> dict[str, Any]:
    match policy.recompute:
        case "none":
            return {}
        case "selective":
            return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
        case "full":
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _with_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> TransformerConfig:
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    for name in overrides:
        if name in values and name not in _FREE_FIELDS:
            raise ConfigError(
                f"policy.megatron_overrides.{name}: megarl sets this field from the model and its own sections; "
                "the training would be wrong with another value"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ConfigError(f"policy.megatron_overrides.{name}: Megatron-core's TransformerConfig has none{hint}")
    try:
        return TransformerConfig(**{**values, **overrides})
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"Megatron-core refuses this model and layout: {error}") from error


def _block_spec(config: TransformerConfig, *, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Layers of this rank's chunk: Transformer Engine's, or the local spec with our norm and attention."""
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    if uses_transformer_engine():
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec()
        return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TENorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RmsNorm
    layer.submodules.pre_mlp_layernorm = RmsNorm
    attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp.submodules
    attention.core_attention = PackedAttention
    if config.bf16 and not cuda_present() and not multiplies_bfloat16():
        attention.linear_qkv = mlp.linear_fc1 = WidenedColumnLinear
        attention.linear_proj = mlp.linear_fc2 = WidenedRowLinear
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RmsNorm)


Chunks = Sequence["PolicyModel"]
"""The model of a policy rank, in order of the layers: one chunk, or several as a virtual pipeline."""


class PolicyModel(GPTModel):
    """One model chunk of a pipeline stage. `forward` takes a packed micro-batch; what the last chunk of the last stage
    returns goes to `distribution`."""

    def __init__(
        self, config: TransformerConfig, shape: ModelShape, *, layout: RankLayout, chunk: int, fused_head: bool
    ) -> None:
        """chunk: index into `layout.layers`, which several chunks share as a virtual pipeline."""
        vp_stage = chunk if len(layout.layers) > 1 else None
        super().__init__(
            config=config,
            transformer_layer_spec=_block_spec(config, vp_stage=vp_stage),
            vocab_size=layout.padded_vocab,
            max_sequence_length=shape.max_positions,
            pre_process=layout.has_embedding and chunk == 0,
            post_process=layout.has_output and chunk == len(layout.layers) - 1,
            vp_stage=vp_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            # Megatron's own rotation of packed rows waits for the device in every layer, a sequence at a time.
            position_embedding_type="rope" if uses_transformer_engine() else "none",
            rotary_base=int(shape.rope_theta),
        )
        # Megatron's own are unscaled, or scaled by constants; ours are those that config.json asks for.
        self._inverse_frequencies = rope_inverse_frequencies(shape).to(torch.cuda.current_device())
        if uses_transformer_engine():
            self.rotary_pos_emb.inv_freq = self._inverse_frequencies
        self._response_index_R: Tensor | None = None
        self._vocab_size = shape.vocab_size
        self._fused_head = fused_head
        self.await_weight: Callable[[Tensor], None] | None = None
        """Where weights are gathered while a forward goes on: what to call with one that is read outside its module."""

    def forward(self, batch: PackedMicroBatch) -> Tensor:
        """Hidden states [S / T or S, 1, H] of an inner stage; of the last, logits [R, V / T] or hidden rows [R, H]."""
        self._response_index_R = batch.response_index_R
        packed = PackedSequences(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=max(batch.lengths),
            max_seqlen_kv=max(batch.lengths),
            lengths=batch.lengths,
            rotation=None if uses_transformer_engine() else self._rotation(batch),
        )
        return super().forward(batch.tokens_S[None], batch.position_S[None], None, packed_seq_params=packed)

    def _rotation(self, batch: PackedMicroBatch) -> Rotation:
        return rotation_at(batch.position_S, self._inverse_frequencies, self.config.params_dtype)

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        # Gradients of the hidden rows are partial sums per vocabulary shard; the mapping's backward adds them up:
        # a reduce-scatter under sequence parallelism, else an all-reduce of the response rows only.
        if self.config.sequence_parallel:
            hidden_R = self._response_rows(gather_from_sequence_parallel_region(hidden_states))
        else:
            hidden_R = copy_to_tensor_model_parallel_region(self._response_rows(hidden_states))
        return hidden_R if self._fused_head else linear(hidden_R, self._head_weight())

    def _response_rows(self, hidden: Tensor) -> Tensor:
        """[R, H] of [S, 1, H]."""
        assert self._response_index_R is not None
        return hidden[:, 0].index_select(0, self._response_index_R)

    def _head_weight(self) -> Tensor:
        """The output weight's shard [V / T, H]; the embedding's where they are tied."""
        weight: Tensor | None = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        weight = self.output_layer.weight if weight is None else weight
        if self.await_weight is not None:
            self.await_weight(weight)
        return weight

    def distribution(
        self, output: Tensor, target_R: Tensor, *, temperature: float, with_expected_q: bool
    ) -> TokenDistribution:
        """Log-prob of the targets, entropy and, if asked for, expected Q at each row of the last stage's output."""
        group = parallel_state.get_tensor_model_parallel_group()
        columns = self._head_weight().shape[0]
        start = parallel_state.get_tensor_model_parallel_rank() * columns
        place = {
            "vocab_start": start,
            "vocab_stop": max(start, min(start + columns, self._vocab_size)),
            "temperature": temperature,
            "group": group if group.size() > 1 else None,
            "with_expected_q": with_expected_q,
        }
        if self._fused_head:
            return fused_linear_logp_entropy(output, self._head_weight(), target_R, **place)
        return vocab_parallel_logp_entropy(output, target_R, **place)
