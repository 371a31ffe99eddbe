"""Bytes that a worker of a vLLM engine needs on its GPU, by formula, and the smallest engine that starts.

Invariant: weights are what vLLM's loader asks for (`models.serving`); `working` and the assumed context are estimates.
"""

from dataclasses import dataclass

from megarl.config.run import RunConfig
from megarl.models.geometry import tensor_share, tensor_sizes
from megarl.models.serving import engine_weight_elements
from megarl.models.shape import ModelShape
from megarl.planning.policy_memory import CONTEXT_BYTES, FLOAT32_BYTES
from megarl.planning.updates import longest_sequence

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """What decides the memory of an engine's workers."""

    shape: ModelShape
    tensor: int
    itemsize: int
    kv_itemsize: int
    budget: int
    """Bytes of a GPU that the engine may use: rollout.memory_fraction of it."""
    longest: int
    """Tokens of the longest sequence, prompt and response."""
    staged: bool = False
    """New weights are gathered on the GPU before they are installed."""
    batched_tokens: int = 2048
    """vLLM's max_num_batched_tokens; the default of an `AsyncLLM` (SchedulerConfig, vLLM 0.32)."""
    sequences: int = 128
    """vLLM's max_num_seqs; the same default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMemory:
    """Bytes per GPU of an engine worker, and what fits into its KV cache."""

    budget: int
    weights: int
    working: int
    """Estimate: activations of a full batch, and the sampler's float32 log-probs."""
    context: int
    kv_cache: int
    """What is left; below 0 where not even the weights fit."""
    staging: int
    """Beside the budget: a second copy of the weights, where they are staged on the GPU."""
    kv_bytes_per_token: int
    kv_tokens: int
    full_sequences: int
    """Sequences of the longest length that the cache holds at once; vLLM refuses to start below one."""

    @property
    def starts(self) -> bool:
        """Room for one sequence."""
        return self.full_sequences > 0


_KV_BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache."""


def rollout_setup(config: RunConfig, shape: ModelShape, *, gpu_memory_gib: float, tensor: int) -> RolloutSetup:
    """What a configuration decides, with engines of `tensor` workers on GPUs of so much memory."""
    rollout, overrides = config.rollout, config.rollout.vllm_overrides
    itemsize = config.model.itemsize
    batch = {
        ours: overrides[theirs]
        for ours, theirs in (("batched_tokens", "max_num_batched_tokens"), ("sequences", "max_num_seqs"))
        if isinstance(overrides.get(theirs), int)
    }
    return RolloutSetup(
        shape=shape,
        tensor=tensor,
        itemsize=itemsize,
        kv_itemsize=1 if str(overrides.get("kv_cache_dtype")).startswith("fp8") else itemsize,
        budget=int(rollout.memory_fraction * gpu_memory_gib * GIB),
        longest=longest_sequence(config),
        staged=rollout.publish.staging == "device",
        **batch,
    )


def find_engine(config: RunConfig, shape: ModelShape, *, gpu_memory_gib: float) -> int | None:
    """Workers of the smallest engine above rollout.tensor that starts, on one node; None where none does."""
    sizes = tensor_sizes(shape, at_most=config.cluster.gpus_per_node, side="engine")
    for tensor in (size for size in sizes if size > config.rollout.tensor):
        if rollout_memory(rollout_setup(config, shape, gpu_memory_gib=gpu_memory_gib, tensor=tensor)).starts:
            return tensor
    return None


def kv_bytes_per_token(shape: ModelShape, *, tensor: int, itemsize: int) -> int:
    """Keys and values of one token in all layers on one worker: 2 x layers x heads x head_dim x itemsize. A worker has
    its share of the key-value heads, and one of them where there are fewer than workers."""
    heads = tensor_share(shape, tensor, side="engine").kv_heads
    return 2 * shape.num_layers * heads * shape.head_dim * itemsize


def rollout_memory(setup: RolloutSetup) -> RolloutMemory:
    """The memory of one engine worker, as vLLM divides it: its KV cache gets what the budget leaves after weights and
    a profiling run (`determine_available_memory`). Raises ModelError where vLLM cannot split the model."""
    shape = setup.shape
    weights = engine_weight_elements(shape, setup.tensor) * setup.itemsize
    width = 3 * tensor_share(shape, setup.tensor, side="engine").ffn_rows + 3 * shape.hidden_size
    # Three copies: logits in float32, their log-softmax, and the sorted or scaled one in between.
    working = setup.batched_tokens * width * setup.itemsize + 3 * setup.sequences * shape.vocab_size * FLOAT32_BYTES
    cache = setup.budget - weights - working - CONTEXT_BYTES
    per_token = kv_bytes_per_token(shape, tensor=setup.tensor, itemsize=setup.kv_itemsize)
    blocks = max(0, cache) // (per_token * _KV_BLOCK_TOKENS)
    return RolloutMemory(
        budget=setup.budget,
        weights=weights,
        working=working,
        context=CONTEXT_BYTES,
        kv_cache=cache,
        staging=weights if setup.staged else 0,
        kv_bytes_per_token=per_token,
        kv_tokens=blocks * _KV_BLOCK_TOKENS,
        full_sequences=blocks // -(-setup.longest // _KV_BLOCK_TOKENS),
    )
