"""vLLM engines, sampling, and how new weights reach them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from megarl.config.base import Config, Unbounded
from megarl.config.facts import MayChange


class PublishConfig(Config):
    """How new weights reach the engines after every step."""

    transport: Literal["shared_memory", "network"] = "shared_memory"
    """shared_memory: policy and engines are on one host; ranks pack straight into the workers' memory. network: gloo or
    NCCL between any hosts."""
    staging: Literal["host", "device", "none"] = "host"
    """CUDA only: memory in which a worker gathers a version before it is installed, of the size of its weights. none,
    for cluster.colocate on one node: nothing is gathered. A worker checks the weights in the policy's own memory, by
    CUDA IPC on its GPU or over NVLink, and when all have, copies them from there. Never run on a GPU."""
    bucket_mib: int = Field(64, ge=1, le=1024)
    """Messages are at most this large; a policy rank has two of them in memory."""
    delta: bool = False
    """With the network: send only elements that changed since the last publication, where that is smaller. Costs a
    policy rank the memory of what it sends."""
    timeout_s: float = Field(300.0, gt=0)
    """A message that does not move for this long ends the publication, with version, tensors and peer."""


class RolloutConfig(Config):
    """vLLM engines and sampling."""

    engines: Annotated[int, MayChange("rounding")] = Field(1, ge=1)
    """vLLM engines, one Ray actor each. With cluster.colocate, where this is absent: as many as the policy's GPUs
    hold."""
    tensor: Annotated[int, MayChange("rounding")] = Field(1, ge=1)
    """Tensor-parallel ranks of each engine."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the policy divides its logits by the same number."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longest prompt; what becomes of a longer one, data.overlong_prompts says."""
    max_response_tokens: int = Field(1024, ge=1)
    """Sampling stops here (stop reason "length")."""
    stop_token_ids: list[int] = []
    """Tokens that end a response besides the chat template's end of turn and the checkpoint's own end-of-sequence
    tokens; `megarl show` lists all of them. The token is part of the response and in the loss."""
    stop_strings: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response, for turns that end with no token of their own. The tokens that spell one are kept:
    they are what the policy sampled, so they are in the loss and in the text that the verifier reads; a last token that
    says more than the text stays whole."""
    memory_fraction: Annotated[float, MayChange("rounding")] = Field(0.85, gt=0, le=1)
    """CUDA only: share of a GPU's memory for an engine (vLLM's gpu_memory_utilization)."""
    cpu_kv_cache_gib: Annotated[float, MayChange("rounding")] = Field(1.0, gt=0)
    """CPU only: KV cache of an engine."""
    asleep_gib: Annotated[float, MayChange()] = Field(8.0, gt=0)
    """CUDA with cluster.colocate: an engine that keeps more of a GPU than this while it sleeps ends the run, because
    the policy has the GPU then. What stays is its CUDA context, its graphs and NCCL's buffers; the step's
    memory/asleep_max_gib says how much."""
    max_logp_diff: Annotated[Unbounded, MayChange()] = Field(0.1, gt=0)
    """The run stops when a step's mean |trainer - vLLM| log-prob over tokens is above this; inf never stops it.
    Measured: 1e-6 in float32, 0.01 to 0.05 in bfloat16; 0.14 and more where one side's temperature is 0.7, not 1."""
    start_timeout_s: Annotated[float, MayChange()] = Field(600.0, gt=0)
    """An engine that is not ready after this long has failed to start."""
    stall_timeout_s: Annotated[float, MayChange()] = Field(300.0, gt=0)
    """An engine that samples no token for this long while it has requests, or one of whose processes is stopped for
    this long, hangs: it is ended, and started again if `restarts` allows."""
    restarts: Annotated[int, MayChange()] = Field(3, ge=0)
    """How often each engine that died or hangs is started again, with the current weights, while the others go on; the
    responses that it owes are sampled again, as many times at most. An engine that is lost once more, or twice in a row
    before it has answered anything, has a fault that starting it again does not remove, and ends the run. 0: never."""
    publish: Annotated[PublishConfig, MayChange()] = PublishConfig()
    vllm_overrides: dict[str, Any] = {}
    """vLLM engine arguments to set verbatim; unknown names are an error."""

    @property
    def starts_without_weights(self) -> bool:
        """Whether engines begin with weights that vLLM makes up: they sample only from what is published to them."""
        return self.vllm_overrides.get("load_format") == "dummy"
