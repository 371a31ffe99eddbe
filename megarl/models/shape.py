"""What a model is. `families` reads it from a Hugging Face config.json.

Invariant: a `ModelShape` describes a model this package can train exactly.
"""

from dataclasses import dataclass

from megarl.models.config_json import ModelError as ModelError  # noqa: PLC0414  (exported)
from megarl.models.rope_parameters import LinearRopeScaling, RopeScaling, YarnRopeScaling

MAX_LAYERS = 10_000
"""No model has as many; a table of the tensors of a mistyped number of layers would take all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A pre-norm decoder with grouped-query attention, SwiGLU and RMSNorm: Llama 3, SmolLM2, Qwen2.5."""

    family: str
    """Its model_type in config.json, by which `families` finds it."""
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
        if self.num_layers > MAX_LAYERS:
            raise ModelError(f"num_layers must be at most {MAX_LAYERS}, found {self.num_layers}; correct config.json")
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
