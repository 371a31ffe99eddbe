"""`megarl plan`: layout, memory, micro-batches and publication of a configuration, by arithmetic; starts nothing."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from megarl.cli.paths import shown_path
from megarl.cli.plan_config import Planned
from megarl.cli.plan_fit import (
    DTYPE_BYTES,
    Fit,
    find_fit,
    longest_stream,
    micro_batches,
    policy_setup,
    stages_memory,
)
from megarl.cli.plan_transfer import Publication, plan_publication
from megarl.config.run import RunConfig
from megarl.models.geometry import tensor_sizes
from megarl.models.memory import PolicyMemory, RolloutMemory, RolloutSetup, rollout_memory
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors
from megarl.reshard.plan import NUM_SLOTS

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who is where. Nodes are numbered from 0, as many as GPUs are needed."""

    policy_gpus: int
    tensor: int
    data: int
    pipeline: int
    engines: int
    engine_tensor: int
    gpus_per_node: int
    policy_nodes: tuple[int, int]
    """First and last."""
    engine_nodes: tuple[int, int]
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """One optimizer update on a data-parallel rank, where all responses have one length."""

    responses: str
    """"longest", or "half as long" with prompts as long as they may be."""
    tokens: int
    """Of a packed sample."""
    samples: int
    micro_batches: int
    bubble: float
    """Share of the time that a pipeline rank idles: (p - 1) / (m + p - 1) of 1F1B with p stages and m micro-batches
    (arXiv 2104.04473, section 2.2, as a share of the whole)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Everything `megarl plan` prints. Bytes are per GPU."""

    model: str
    shape_file: str | None
    """What was read in place of a model that is not on this machine."""
    family: str
    dtype: str
    parameters: int
    gpu_memory_bytes: int
    layout: Layout
    policy: tuple[PolicyMemory, ...]
    """The stages that differ."""
    fit: Fit | None
    """What to change where the policy does not fit."""
    rollout: RolloutMemory
    updates: tuple[Updates, ...]
    publication: Publication
    warnings: tuple[str, ...]

    @property
    def worst(self) -> PolicyMemory:
        """The fullest stage."""
        return max(self.policy, key=lambda stage: stage.total)

    @property
    def policy_fits(self) -> bool:
        return self.worst.total <= self.gpu_memory_bytes

    @property
    def rollout_fits(self) -> bool:
        """Room for one sequence, without which vLLM does not start, and for the staging memory."""
        return self.rollout.full_sequences > 0 and self.rollout.budget + self.rollout.staging <= self.gpu_memory_bytes

    @property
    def fits(self) -> bool:
        return self.policy_fits and self.rollout_fits

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, with totals and whether they fit."""
        plan = asdict(self)
        for stage, memory in zip(plan["policy"], self.policy, strict=True):
            stage["total"] = memory.total
        return plan | {"policy_fits": self.policy_fits, "rollout_fits": self.rollout_fits}


def make_plan(planned: Planned, *, gpu_memory_gib: float) -> RunPlan:
    """The numbers of a layout that can work."""
    config, shape = planned.config, planned.shape
    itemsize, publish = DTYPE_BYTES[config.model.dtype], config.rollout.publish
    publication = plan_publication(
        shape,
        planned.topology,
        itemsize=itemsize,
        bucket_bytes=publish.bucket_mib << 20,
        shared_memory=publish.transport == "shared_memory",
    )
    kept = NUM_SLOTS * (publish.bucket_mib << 20)
    kept += publication.sent_max_bytes if publish.delta else 0
    limit = int(gpu_memory_gib * GIB)
    policy = stages_memory(dataclasses.replace(policy_setup(config, shape), publication=kept))
    fits = max(stage.total for stage in policy) <= limit
    plan = RunPlan(
        model=planned.model,
        shape_file=None if planned.shape_file is None else shown_path(planned.shape_file),
        family=shape.family,
        dtype=config.model.dtype,
        parameters=_count_parameters(shape),
        gpu_memory_bytes=limit,
        layout=_describe_layout(planned),
        policy=policy,
        fit=None if fits else find_fit(config, shape, limit=limit, publication=kept, nodes_typed=planned.nodes_typed),
        rollout=rollout_memory(_rollout_setup(config, shape, config.rollout.tensor, gpu_memory_gib)),
        updates=tuple(_describe_updates(config)),
        publication=publication,
        warnings=(),
    )
    return dataclasses.replace(plan, warnings=tuple(_warnings(plan, planned, gpu_memory_gib)))


def _count_parameters(shape: ModelShape) -> int:
    return sum(math.prod(dims) for dims in hf_tensors(shape).values())


def _describe_layout(planned: Planned) -> Layout:
    grid, topology = planned.grid, planned.topology
    return Layout(
        policy_gpus=grid.world_size,
        tensor=grid.tensor,
        data=grid.data,
        pipeline=grid.pipeline,
        engines=topology.engines,
        engine_tensor=topology.tensor,
        gpus_per_node=planned.config.cluster.gpus_per_node,
        policy_nodes=(topology.trainer_nodes[0], topology.trainer_nodes[-1]),
        engine_nodes=(topology.taker_nodes[0], topology.taker_nodes[-1]),
        nodes=planned.num_nodes,
    )


def _describe_updates(config: RunConfig) -> Iterator[Updates]:
    stages = config.parallel.pipeline
    half = config.rollout.max_prompt_tokens + max(1, config.rollout.max_response_tokens // 2) - 1
    for name, stream in (("longest", longest_stream(config)), ("half as long", half)):
        count = micro_batches(config, stream)
        yield Updates(
            responses=name,
            tokens=stream,
            samples=config.train.mini_batch_responses // config.parallel.data,
            micro_batches=count,
            bubble=(stages - 1) / (count + stages - 1),
        )


def _rollout_setup(config: RunConfig, shape: ModelShape, tensor: int, gpu_memory_gib: float) -> RolloutSetup:
    rollout, overrides = config.rollout, config.rollout.vllm_overrides
    itemsize = DTYPE_BYTES[config.model.dtype]
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
        longest=rollout.max_prompt_tokens + rollout.max_response_tokens,
        staged=rollout.publish.staging == "device",
        **batch,
    )


def _warnings(plan: RunPlan, planned: Planned, gpu_memory_gib: float) -> Iterator[str]:
    """What does not fit, its largest part, and what to change."""
    if not plan.policy_fits:
        worst = plan.worst
        name, size = max(worst.items.items(), key=lambda item: item[1])
        change = (
            f"it fits ({plan.fit.total_bytes / GIB:.1f} GiB) with {' '.join(plan.fit.arguments)}"
            if plan.fit
            else ("no split of this model that was tried fits; shorten the sequences, or use GPUs with more memory")
        )
        yield (
            f"the policy does not fit: stage {worst.stage} needs {worst.total / GIB:.1f} of {gpu_memory_gib:g} GiB, "
            f"most of it {name} ({size / GIB:.1f} GiB); {change}"
        )
    rollout = plan.rollout
    if rollout.full_sequences < 1:
        yield (
            f"an engine does not fit: of the {rollout.budget / GIB:.1f} GiB that rollout.memory_fraction gives it, "
            f"weights take {rollout.weights / GIB:.1f} GiB, and the KV cache needs "
            f"{_longest_kv_gib(planned, rollout):.2f} GiB for one sequence of the longest; "
            f"{_engine_advice(planned, gpu_memory_gib)}"
        )
    elif not plan.rollout_fits:
        yield (
            f"an engine's staging memory does not fit: {rollout.staging / GIB:.1f} GiB beside the "
            f"{rollout.budget / GIB:.1f} GiB of rollout.memory_fraction; set rollout.publish.staging=host, or lower "
            "rollout.memory_fraction"
        )


def _longest_kv_gib(planned: Planned, rollout: RolloutMemory) -> float:
    limits = planned.config.rollout
    return (limits.max_prompt_tokens + limits.max_response_tokens) * rollout.kv_bytes_per_token / GIB


def _engine_advice(planned: Planned, gpu_memory_gib: float) -> str:
    """The smallest larger engine that starts, on one node."""
    config, shape = planned.config, planned.shape
    sizes = tensor_sizes(shape, at_most=config.cluster.gpus_per_node, side="engine")
    for tensor in (size for size in sizes if size > config.rollout.tensor):
        if rollout_memory(_rollout_setup(config, shape, tensor, gpu_memory_gib)).full_sequences:
            return f"use --rollout-tensor {tensor}"
    return (
        f"no engine on the {config.cluster.gpus_per_node} GPUs of a node does; use GPUs with more memory, a smaller "
        "model, or nodes of more GPUs (--gpus-per-node)"
    )
