"""The policy's memory under a configuration, and the changes that make it fit."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megarl.cli.plan_config import nodes_needed
from megarl.config.dump import format_value
from megarl.config.run import RunConfig
from megarl.models.geometry import policy_splits, stage_counts
from megarl.models.memory import PolicyMemory, PolicySetup, distinct_stages, policy_memory
from megarl.models.preflight import Changes, changed, loads
from megarl.models.shape import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_MOST_CHANGES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Changes with which the policy fits."""

    arguments: tuple[str, ...]
    """As `megarl plan` and, the options apart, every verb takes them."""
    total_bytes: int
    """Of the fullest stage."""


def longest_stream(config: RunConfig) -> int:
    """Tokens of the longest sample in a packed micro-batch; its last token is only predicted."""
    return config.rollout.max_prompt_tokens + config.rollout.max_response_tokens - 1


def micro_batches(config: RunConfig, stream: int) -> int:
    """Micro-batches per data-parallel rank and update where every sample's stream has this length
    (`plan_micro_batches` deals equal samples so)."""
    samples = config.train.mini_batch_responses // config.parallel.data
    return math.ceil(samples / max(1, config.policy.tokens_per_micro_batch // stream))


def policy_setup(config: RunConfig, shape: ModelShape) -> PolicySetup:
    """What the policy's memory depends on, at the longest sequences."""
    parallel, policy = config.parallel, config.policy
    tokens = max(policy.tokens_per_micro_batch, longest_stream(config))
    multiple = parallel.tensor if parallel.sequence else 1
    return PolicySetup(
        shape=shape,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        itemsize=DTYPE_BYTES[config.model.dtype],
        sequence=parallel.sequence,
        distributed_optimizer=policy.distributed_optimizer,
        recompute=policy.recompute,
        fused_head=policy.head == "fused",
        reference=config.objective.auxiliary.reads("reference"),
        tokens=-(-tokens // multiple) * multiple,
        micro_batches=micro_batches(config, longest_stream(config)),
    )


def stages_memory(setup: PolicySetup) -> tuple[PolicyMemory, ...]:
    """The memory of the stages that differ."""
    return tuple(policy_memory(setup, stage) for stage in distinct_stages(setup.pipeline))


def find_fit(
    config: RunConfig, shape: ModelShape, *, limit: int, publication: int, nodes_typed: bool = False
) -> Fit | None:
    """The changes with which no stage needs more than `limit` bytes: the one that spares most again and again, until
    one suffices, and the cheapest such; then without those that turn out not to be needed. None where that leads
    nowhere. With each of them the configuration loads and the model splits; nodes are added as they are needed, and
    named where `nodes_typed` says that somebody chose their number."""

    def total(changes: Changes) -> int:
        setup = policy_setup(changed(config, changes), shape)
        return max(stage.total for stage in stages_memory(dataclasses.replace(setup, publication=publication)))

    changes: dict[str, Any] = {}
    best = total(changes)
    for _ in range(_MOST_CHANGES):
        if best <= limit:
            break
        tried = [(total(more), more) for more in _moves(config, shape, changes) if _works(config, shape, more)]
        enough = next((pair for pair in tried if pair[0] <= limit), None)
        least, more = enough or min(tried, key=lambda pair: pair[0], default=(best, changes))
        if least >= best:
            return None
        best, changes = least, dict(more)
    for path in [path for path in changes if path not in _LAYOUT]:
        without = {key: value for key, value in changes.items() if key != path}
        if total(without) <= limit and _works(config, shape, without):
            changes = without
    if best > limit:
        return None
    arguments = _arguments(changes | _cluster(config, changes, nodes_typed=nodes_typed))
    return Fit(arguments=tuple(arguments), total_bytes=total(changes))


_LAYOUT = {"parallel.world_size": "--gpus", "parallel.tensor": "--tensor", "parallel.pipeline": "--pipeline"}


def _arguments(changes: Changes) -> Iterator[str]:
    yield from (f"{option} {changes[path]}" for path, option in _LAYOUT.items() if path in changes)
    for path, value in changes.items():
        if path not in _LAYOUT:
            yield f"{path}={value if isinstance(value, str) else format_value(value)}"


def _cluster(config: RunConfig, changes: Changes, *, nodes_typed: bool) -> dict[str, Any]:
    """What more nodes ask for: their number where it was typed, and a transport that leaves a node."""
    nodes = nodes_needed(changed(config, changes))
    more: dict[str, Any] = {}
    if nodes_typed and nodes > config.cluster.nodes:
        more["cluster.nodes"] = nodes
    if nodes > 1 and config.rollout.publish.transport == "shared_memory":
        more["rollout.publish.transport"] = "network"
    return more


def _works(config: RunConfig, shape: ModelShape, changes: Changes) -> bool:
    """Whether the configuration loads with the changes, on as many nodes as it takes, and the model splits."""
    now = changed(config, changes).parallel
    if not policy_splits(shape, tensor_size=now.tensor, pipeline_size=now.pipeline):
        return False
    if now.world_size % (now.tensor * now.pipeline):
        return False
    nodes = {"cluster.nodes": max(config.cluster.nodes, nodes_needed(changed(config, changes)))}
    return loads(config, {**changes, **nodes, **_cluster(config, changes, nodes_typed=False)})


def _moves(config: RunConfig, shape: ModelShape, changes: Changes) -> Iterator[Changes]:
    """The changes with one more, the cheapest first."""
    now = changed(config, changes)
    parallel, policy = now.parallel, now.policy
    if not policy.distributed_optimizer:
        yield {**changes, "policy.distributed_optimizer": True}
    if parallel.tensor > 1 and not parallel.sequence:
        yield {**changes, "parallel.sequence": True}
    if policy.tokens_per_micro_batch > longest_stream(now):
        halved = max(longest_stream(now), policy.tokens_per_micro_batch // 2)
        yield {**changes, "policy.tokens_per_micro_batch": halved}
    per_node = config.cluster.gpus_per_node
    for tensor in (size for size in range(parallel.tensor + 1, per_node + 1) if per_node % size == 0):
        yield _with_layout(now, changes, tensor=tensor, pipeline=parallel.pipeline)
    if policy.head != "fused":
        yield {**changes, "policy.head": "fused"}
    if policy.recompute != "full":
        yield {**changes, "policy.recompute": "full"}
    deeper = (count for count in stage_counts(shape) if count > parallel.pipeline)
    if (pipeline := next(deeper, None)) is not None:
        yield _with_layout(now, changes, tensor=parallel.tensor, pipeline=pipeline)
    if now.train.mini_batch_responses % (2 * parallel.data) == 0:
        yield {**changes, "parallel.world_size": 2 * parallel.world_size}


def _with_layout(now: RunConfig, changes: Changes, *, tensor: int, pipeline: int) -> Changes:
    """Another split of the model on about as many GPUs, and on more where one replica needs them."""
    data = max(1, now.parallel.world_size // (tensor * pipeline))
    while now.train.mini_batch_responses % data:
        data -= 1
    layout = {"parallel.tensor": tensor, "parallel.pipeline": pipeline}
    changed = {path: size for path, size in layout.items() if path in changes or size != _value(now, path)}
    return {**changes, **changed, "parallel.world_size": tensor * pipeline * data}


def _value(config: RunConfig, path: str) -> Any:
    section, _, name = path.partition(".")
    return getattr(getattr(config, section), name)
