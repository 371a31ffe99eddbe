"""vLLM engines, sampling, and how new weights reach them."""

from typing import Any, Literal

from pydantic import Field

from megarl.config.base import Config


class PublishConfig(Config):
    """How new weights reach the engines after every step."""

    transport: Literal["shared_memory", "broadcast"] = "shared_memory"
    """shared_memory: policy rank 0 and the engines are on one node. broadcast: gloo or NCCL, any node."""
    bucket_mib: int = Field(256, ge=1)
    """Bytes in flight: weights are streamed in buckets of at most this size (or one tensor, if larger)."""
    timeout_s: float = Field(300.0, gt=0)
    """A bucket that neither side moves for this long ends the run with the version, tensor and peer."""


class RolloutConfig(Config):
    """vLLM engines and sampling."""

    engines: int = Field(1, ge=1)
    """vLLM engines, one Ray actor each."""
    tensor: int = Field(1, ge=1)
    """Tensor-parallel ranks of each engine."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the policy divides its logits by the same number."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt is an error at start, naming it."""
    max_response_tokens: int = Field(1024, ge=1)
    """Sampling stops here (stop reason "length")."""
    memory_fraction: float = Field(0.85, gt=0, le=1)
    """CUDA only: share of a GPU's memory for an engine (vLLM's gpu_memory_utilization)."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """CPU only: KV cache of an engine."""
    max_logp_diff: float = Field(0.5, gt=0)
    """The run stops when a step's mean |trainer - vLLM| log-prob over tokens is above this."""
    start_timeout_s: float = Field(600.0, gt=0)
    """An engine that is not ready after this long has failed to start."""
    publish: PublishConfig = PublishConfig()
    vllm_overrides: dict[str, Any] = {}
    """vLLM engine arguments to set verbatim; unknown names are an error."""
