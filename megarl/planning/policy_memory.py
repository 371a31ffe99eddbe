"""Bytes that a policy rank needs on its GPU, by formula; nothing is built or measured.

Invariants: parameters are counted from the one weight table (`list_parameters`), whose tensor ranks hold equally many
elements, so a pipeline stage has one figure. Weights, gradients and optimizer state are exact, activations are what
autograd saves; only `working` and the assumed context are estimates.

S = packed tokens of a micro-batch, h = hidden size, q and k = query and key widths and f = MLP width of a tensor rank.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megarl.config.run import RunConfig
from megarl.models.geometry import TensorShare, layers_per_chunk, tensor_share
from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import list_parameters
from megarl.planning.updates import count_micro_batches, longest_stream

CONTEXT_BYTES = 2 << 30
"""Assumed for what no formula gives: CUDA context (about 0.5 GiB on an H100), NCCL's buffers, cuBLAS workspaces, and
what the allocator cannot use."""

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetup:
    """What decides the memory of the policy's ranks."""

    shape: ModelShape
    tensor: int
    pipeline: int
    data: int
    itemsize: int
    """Bytes of an element of the weights and activations: 2 in bfloat16."""
    sequence: bool
    """Sequence parallelism: norms and residuals hold S / tensor tokens."""
    distributed_optimizer: bool
    bucket_elements: int | None
    """At which a bucket of the gradient buffer is closed; None without overlap: at its end."""
    recompute: Literal["none", "selective", "full"]
    fused_head: bool
    """Logits [S, vocabulary / tensor] never exist."""
    reference: bool
    """A frozen second copy of the weights, for the KL."""
    tokens: int
    """S, of which at worst every one is a response token and has logits."""
    micro_batches: int
    """Per rank and update."""
    publication: int = 0
    """Bytes that publishing keeps on the GPU: packed messages and, with deltas, the copy they are taken against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMemory:
    """Bytes per GPU of one pipeline stage at its fullest moment, by what they are for."""

    stage: int
    in_flight: int
    """Micro-batches whose activations the stage holds at once."""
    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """Of one micro-batch, with the hidden rows they are made of; on the last stage only."""
    working: int
    """Estimate of what backward holds for a moment. The optimizer's step, a fused AdamW, holds nothing of its own."""
    publication: int
    context: int = CONTEXT_BYTES

    @property
    def items(self) -> dict[str, int]:
        """The parts that add up to `total`, by name."""
        held = ("weights", "reference", "gradients", "optimizer", "activations", "logits")
        return {name: getattr(self, name) for name in (*held, "working", "publication", "context")}

    @property
    def total(self) -> int:
        return sum(self.items.values())


def policy_setup(config: RunConfig, shape: ModelShape, *, publication: int = 0) -> PolicySetup:
    """What a configuration decides, at the longest sequences. publication: bytes that publishing keeps on the GPU."""
    parallel, policy = config.parallel, config.policy
    tokens = max(policy.tokens_per_micro_batch, longest_stream(config))
    multiple = parallel.tensor if parallel.sequence else 1
    overlap = policy.overlap_of(data_ranks=parallel.data, nccl=policy.backend != "gloo")
    return PolicySetup(
        shape=shape,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        itemsize=config.model.itemsize,
        sequence=parallel.sequence,
        distributed_optimizer=policy.distributed_optimizer,
        bucket_elements=None if overlap == "off" else policy.bucket_of(data_ranks=parallel.data),
        recompute=policy.recompute,
        fused_head=policy.head == "fused",
        reference=config.objective.auxiliary.reads("reference"),
        tokens=-(-tokens // multiple) * multiple,
        micro_batches=count_micro_batches(config, longest_stream(config)),
        publication=publication,
    )


def stages_memory(setup: PolicySetup) -> tuple[PolicyMemory, ...]:
    """The memory of the stages that differ."""
    return tuple(policy_memory(setup, stage) for stage in distinct_stages(setup.pipeline))


def distinct_stages(pipeline: int) -> tuple[int, ...]:
    """The stages that differ: the first, the second for all inner ones (it has most micro-batches in flight), the
    last."""
    return tuple(dict.fromkeys((0, min(1, pipeline - 1), pipeline - 1)))


def policy_memory(setup: PolicySetup, stage: int) -> PolicyMemory:
    """The memory of the ranks of one stage. Raises ModelError where the model does not split this way.

    Weights and gradients: Megatron's buffers, `itemsize` and 4 bytes an element (`grad_reduce_in_fp32`), with the
    distributed optimizer's padding. Optimizer: 12 bytes an element, float32 weights and Adam's two moments, split over
    the data ranks by the distributed optimizer; 8 for a float32 model, which is its own main copy. (Megatron-core,
    docs/api-guide/dist_optimizer: 18 bytes a parameter in bf16, and 6 + 12/d distributed over d ranks.)
    """
    buckets = list(_cut_buckets(setup, stage))
    sizes = [_bucket_elements(bucket, setup) for bucket in buckets]
    unpadded = [sum(bucket) for bucket in buckets]
    shards = setup.data if setup.distributed_optimizer else 1
    owned = sum(min(-(-size // shards), whole) for size, whole in zip(sizes, unpadded, strict=True))
    main_copy = setup.itemsize < FLOAT32_BYTES
    in_flight = min(setup.pipeline - stage, setup.micro_batches)
    activations = in_flight * (saved_activations(setup, stage) + _stage_output(setup, stage))
    logits = _logits(setup) if stage == setup.pipeline - 1 else 0
    return PolicyMemory(
        stage=stage,
        in_flight=in_flight,
        weights=sum(sizes) * setup.itemsize,
        reference=sum(unpadded) * setup.itemsize if setup.reference else 0,
        gradients=sum(sizes) * FLOAT32_BYTES,
        optimizer=owned * FLOAT32_BYTES * (3 if main_copy else 2),
        activations=activations,
        logits=logits,
        working=_working(setup, stage),
        publication=setup.publication,
    )


def _cut_buckets(setup: PolicySetup, stage: int) -> Iterator[tuple[int, ...]]:
    """`_buckets`, and with overlap on the first stage those cut once more, as Megatron fills them: from the last
    parameter to the first, each closed when it has so many elements."""
    for bucket in _buckets(setup.shape, tensor=setup.tensor, pipeline=setup.pipeline, stage=stage):
        if setup.bucket_elements is None or stage > 0:
            yield bucket
            continue
        filled: list[int] = []
        held = 0
        for size in reversed(bucket):
            before = -(-held // 64) * 64 if setup.distributed_optimizer else held
            filled, held = [*filled, size], before + size
            if held >= setup.bucket_elements:
                yield tuple(filled)
                filled, held = [], 0
        if filled:
            yield tuple(filled)


@functools.cache
def _buckets(shape: ModelShape, *, tensor: int, pipeline: int, stage: int) -> tuple[tuple[int, ...], ...]:
    """Elements of the stage's parameters, in the buckets of Megatron's gradient buffer: one, and one for an embedding
    that first and last stage share (`_ParamAndGradBuffer`)."""
    layout = layout_of(shape, tensor_rank=0, tensor_size=tensor, pipeline_rank=stage, pipeline_size=pipeline)
    entries = list_parameters(shape, layout)
    sizes = tuple(math.prod(entry.shape) for entry in entries)
    if shape.tied_embeddings and pipeline > 1:
        if layout.has_embedding:  # the table begins with it
            return sizes[1:], sizes[:1]
        if layout.has_output:  # the table ends with its copy
            return sizes[:-1], sizes[-1:]
    return (sizes,)


def _bucket_elements(sizes: tuple[int, ...], setup: PolicySetup) -> int:
    """Elements of a bucket. For the distributed optimizer parameters begin at multiples of 64 elements and a bucket
    ends at one of 128 that the data ranks divide."""
    if not setup.distributed_optimizer:
        return sum(sizes)
    step = math.lcm(setup.data, 128)
    return -(-sum(-(-size // 64) * 64 for size in sizes) // step) * step


def saved_activations(setup: PolicySetup, stage: int) -> int:
    """Bytes that autograd saves of one micro-batch on a stage, the head apart.

    After "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198, equations 2 to 6), for
    what this policy runs instead: flash attention, grouped key-value heads, SwiGLU, no dropout, CUDA's fused norm and
    SwiGLU kernels. `layer_activations` has the terms. The CPU's kernels save more, so that this is 0.71 to 0.78 of
    what the real model saves there (hidden 128, MLP 352, float32); with the CPU's extra tensors counted it is 0.999 to
    1.003 of it on every rank, for every recomputation and for tensor, sequence and pipeline parallelism
    (tests/planning/test_policy_memory.py). With Transformer Engine, which may copy the value, a layer saves the same
    or less.
    """
    layers = layers_per_chunk(setup.shape, setup.pipeline)
    rows = _norm_rows(setup)
    hidden = rows * setup.shape.hidden_size * setup.itemsize
    saved = layers * (hidden if setup.recompute == "full" else layer_activations(setup))
    saved += rotation_table(setup)
    if stage == 0:
        saved += 8 * setup.tokens  # token ids
    if stage == setup.pipeline - 1:
        saved += hidden + FLOAT32_BYTES * rows  # final norm: its input, 1 / rms
    return saved


def rotation_table(setup: PolicySetup) -> int:
    """Bytes of the cosines and sines [tokens, head_dim / 2] by which all layers of a pass rotate."""
    return setup.tokens * setup.shape.head_dim * setup.itemsize


def layer_activations(setup: PolicySetup) -> int:
    """Bytes that one layer saves of a micro-batch without recomputation of the whole layer.

    Elements per token: input and output of the two norms 4 h; fused query, key and value q + 2 k, which stay alive
    because the value is a view of them; rotated query and key q + k; attention output q; SwiGLU's input 2 f and output
    f. In float32: 1 / rms twice, and the attention's log-sum-exp for each head, which is all that selective
    recomputation spares with Transformer Engine, beside the attention kernel's own workspace. (Without it the rotation
    is computed again too, and q + k are spared; a plan counts them, as it does not know what a worker will find.)
    """
    shape, share, rows = setup.shape, _share(setup), _norm_rows(setup)
    query, key = share.heads * shape.head_dim, share.kv_heads * shape.head_dim
    # With fewer key-value heads than tensor ranks the fused projection is that of all ranks, gathered.
    per_token = share.qkv_rows + query + key + query + 3 * share.ffn_rows
    log_sum_exp = 0 if setup.recompute == "selective" else setup.tokens * share.heads
    elements = 4 * rows * shape.hidden_size + setup.tokens * per_token
    return elements * setup.itemsize + FLOAT32_BYTES * (2 * rows + log_sum_exp)


def recomputed_layer(setup: PolicySetup) -> int:
    """Bytes that full recomputation adds while one layer is computed again; its input was kept."""
    return layer_activations(setup) - _norm_rows(setup) * setup.shape.hidden_size * setup.itemsize


def _norm_rows(setup: PolicySetup) -> int:
    """Tokens that a tensor rank's norms and residuals hold."""
    return setup.tokens // setup.tensor if setup.sequence else setup.tokens


def _stage_output(setup: PolicySetup, stage: int) -> int:
    """What a stage sends on stays allocated until its backward (`deallocate_pipeline_outputs` is off)."""
    last = stage == setup.pipeline - 1
    return 0 if last else _norm_rows(setup) * setup.shape.hidden_size * setup.itemsize


def _share(setup: PolicySetup) -> TensorShare:
    return tensor_share(setup.shape, setup.tensor, side="policy")


def _logits(setup: PolicySetup) -> int:
    """Hidden rows of the response tokens and, without the fused head, logits in the model's dtype; the gradient is
    written over them (`vocab_parallel_logp_entropy`)."""
    columns = 0 if setup.fused_head else _share(setup).vocab_rows
    return setup.tokens * (setup.shape.hidden_size + columns) * setup.itemsize


def _working(setup: PolicySetup, stage: int) -> int:
    """The larger of a layer's and the head's backward: gradients of what the linear layers have as input and output,
    and of the weight, in the model's dtype, before it is added to the gradient buffer. With full recomputation also
    the one layer that is computed again."""
    shape, itemsize, share = setup.shape, setup.itemsize, _share(setup)
    ffn = share.ffn_rows
    layer = setup.tokens * (3 * ffn + 2 * shape.hidden_size) + 2 * ffn * shape.hidden_size
    again = recomputed_layer(setup) if setup.recompute == "full" else 0
    if stage < setup.pipeline - 1:
        return layer * itemsize + again
    head = (2 * setup.tokens + share.vocab_rows) * shape.hidden_size
    return max(layer * itemsize + again, head * itemsize)
