"""The changes of a configuration that make its policy fit.

Invariant: what is found was tried: with it the configuration loads, the model splits, and no stage needs more than the
limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megarl.config.run import RunConfig
from megarl.models.geometry import policy_splits, stage_counts
from megarl.models.shape import ModelShape
from megarl.planning.changes import Changes, changed, loads
from megarl.planning.nodes import nodes_needed
from megarl.planning.policy_memory import policy_setup, stages_memory
from megarl.planning.shortage import ShortageError
from megarl.planning.updates import longest_stream

LAYOUT = ("parallel.world_size", "parallel.tensor", "parallel.pipeline")
"""Fields that change together: a part of such a change is no change that was tried."""
_MOST_CHANGES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Changes with which the policy fits."""

    changes: Changes
    total_bytes: int
    """Of the fullest stage."""


def find_fit(
    config: RunConfig, shape: ModelShape, *, limit: int, publication: int, nodes_chosen: bool = False
) -> Fit | None:
    """The changes with which no stage needs more than `limit` bytes: the one that spares most again and again, until
    one suffices, and the cheapest such; then without those that turn out not to be needed. None where that leads
    nowhere. With each of them the configuration loads and the model splits; nodes are added as they are needed, and
    named where `nodes_chosen` says that somebody set their number."""

    def total(changes: Changes) -> int:
        setup = policy_setup(changed(config, changes), shape, publication=publication)
        return max(stage.total for stage in stages_memory(setup))

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
    for path in [path for path in changes if path not in LAYOUT]:
        without = {key: value for key, value in changes.items() if key != path}
        if total(without) <= limit and _works(config, shape, without):
            changes = without
    if best > limit:
        return None
    return Fit(changes=changes | _cluster(config, changes, nodes_chosen=nodes_chosen), total_bytes=total(changes))


def _cluster(config: RunConfig, changes: Changes, *, nodes_chosen: bool) -> dict[str, Any]:
    """What more nodes ask for: their number where it was typed, and a transport that leaves a node."""
    nodes = nodes_needed(changed(config, changes))
    more: dict[str, Any] = {}
    if nodes_chosen and nodes > config.cluster.nodes:
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
    try:
        nodes = {"cluster.nodes": max(config.cluster.nodes, nodes_needed(changed(config, changes)))}
    except ShortageError:  # engines that share the policy's GPUs have not enough of them then
        return False
    return loads(config, {**changes, **nodes, **_cluster(config, changes, nodes_chosen=False)})


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
