"""The trained model, how it is split over ranks, and its optimizer."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from megarl.config.base import Config, ConfigError
from megarl.config.facts import MayChange


class ModelConfig(Config):
    """The trained model."""

    path: str
    """Directory of a Hugging Face checkpoint: config.json, tokenizer, safetensors weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype of policy and rollout. The optimizer's main weights are always float32."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element in `dtype`."""
        return {"float32": 4, "bfloat16": 2}[self.dtype]


class ParallelConfig(Config):
    """How the policy's ranks split the model and the batch."""

    tensor: int = Field(1, ge=1)
    """Ranks that split each weight matrix; keep inside one node."""
    pipeline: int = Field(1, ge=1)
    """Ranks that split the layers."""
    world_size: int = Field(1, ge=1)
    """Policy ranks in all; data-parallel ranks are what remains after tensor and pipeline."""
    sequence: bool = False
    """Megatron's sequence parallelism: norms and dropout split the tokens over the tensor ranks."""

    @property
    def data(self) -> int:
        """Data-parallel ranks; ConfigError when the world size does not divide."""
        model_ranks = self.tensor * self.pipeline
        if self.world_size % model_ranks:
            raise ConfigError(
                f"parallel.world_size {self.world_size} is not a multiple of tensor {self.tensor} x pipeline "
                f"{self.pipeline} = {model_ranks}; change one of the three"
            )
        return self.world_size // model_ranks


class OptimizerConfig(Config):
    """AdamW with float32 main weights."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: hold `lr`, or fall along a half cosine that would be at `min_lr` in the update after the
    last: every update has a rate above 0."""
    warmup_updates: int = Field(0, ge=0)
    """Optimizer updates over which the rate rises linearly, to `lr` in the last of them; fewer than the run has."""
    min_lr: float = Field(0.0, ge=0)
    """Where the cosine leads."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the squared gradients' mean."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled; not applied to biases and norms."""
    clip_grad_norm: float = Field(1.0, ge=0)
    """Global gradient norm is clipped to this; 0 turns clipping off."""
    lr_for_responses: int | None = Field(None, ge=1)
    """`lr` and `min_lr` are meant for this many responses per update and scaled by sqrt(responses / this) (BroRL,
    arXiv 2510.01180); absent: not scaled."""

    def scaled(self, responses: int) -> Self:
        """The same with learning rates for updates of this many responses, where `lr_for_responses` asks for it."""
        if self.lr_for_responses is None:
            return self
        factor = math.sqrt(responses / self.lr_for_responses)
        return self.model_copy(update={"lr": self.lr * factor, "min_lr": self.min_lr * factor})


class PolicyConfig(Config):
    """Megatron-core policy workers."""

    optimizer: OptimizerConfig = OptimizerConfig()
    distributed_optimizer: Annotated[bool, MayChange("rounding")] = True
    """Megatron's distributed optimizer: main weights and moments split over the data-parallel ranks."""
    overlap: Annotated[Literal["auto", "off", "gradients", "all"], MayChange("rounding")] = "auto"
    """What data-parallel ranks tell each other beside computing: gradients are reduced bucket by bucket while backward
    goes on; with "all", weights too are gathered while the next forward goes on, which needs the distributed optimizer.
    auto: gradients, between several ranks over nccl; else off. Never run on a GPU."""
    bucket_elements: Annotated[int | None, MayChange("rounding")] = Field(None, ge=1)
    """With overlap: a bucket is closed when it has as many elements. Absent: Megatron's own, 40 million, or a million
    for each data-parallel rank where that is more."""
    recompute: Annotated[Literal["none", "selective", "full"], MayChange("rounding")] = "none"
    """Activation recomputation: nothing, the core attention, or every layer."""
    head: Annotated[Literal["auto", "logits", "fused"], MayChange("rounding")] = "logits"
    """Output head: logits of a micro-batch's response tokens at once (fastest), or fused with the loss so that
    [tokens, vocabulary] never exists (least memory, one more matrix product). auto: logits where they fit the GPUs of
    the machine that starts the run, by the arithmetic of `megarl plan`, and without GPUs; else fused. Decided once: the
    run's own config.toml names it."""
    backend: Annotated[Literal["auto", "nccl", "gloo"], MayChange("rounding")] = "auto"
    """torch.distributed backend of the policy's ranks. auto: nccl on GPUs, gloo without. gloo on GPUs is for ranks that
    must share one, which nccl refuses: every collective then goes through host memory (a reduce-scatter as a whole
    all-reduce), many times slower, and there is no pipeline, because gloo does not send from a GPU."""
    tokens_per_micro_batch: Annotated[int, MayChange("rounding")] = Field(8192, ge=1)
    """Packed tokens a micro-batch may hold; one longer sequence makes a micro-batch of its own."""
    master_port: Annotated[int, MayChange()] = Field(0, ge=0, le=65535)
    """Port of the policy's rendezvous on its first node; 0 picks a free one."""
    collective_timeout_s: Annotated[float, MayChange()] = Field(600.0, gt=0)
    """A collective among policy ranks that takes longer fails with a message; Megatron's groups round up to minutes."""
    start_timeout_s: Annotated[float, MayChange()] = Field(1800.0, gt=0)
    """Policy ranks that have not met and read the weights after this long have failed to start."""
    call_timeout_s: Annotated[float, MayChange()] = Field(7200.0, gt=0)
    """A policy rank that works longer than this on one thing (log-probs of a step's batch, an update, a publication, an
    export) hangs: the run ends with its name."""
    megatron_overrides: dict[str, Any] = {}
    """Fields of Megatron-core's TransformerConfig to set verbatim; unknown names are an error."""

    def overlap_of(self, *, data_ranks: int, nccl: bool) -> Literal["off", "gradients", "all"]:
        """What `overlap` means for so many data-parallel ranks, over nccl or not."""
        if self.overlap != "auto":
            return self.overlap
        return "gradients" if nccl and data_ranks > 1 else "off"

    def bucket_of(self, *, data_ranks: int) -> int:
        """Elements at which a bucket is closed, where something overlaps."""
        return self.bucket_elements or max(40_000_000, 1_000_000 * data_ranks)
