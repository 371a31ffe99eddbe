"""Layout, memory, micro-batches and publication of a configuration, before it starts."""

import math
from dataclasses import dataclass

from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors
from megarl.planning.engine_memory import GIB, RolloutMemory, find_engine, rollout_memory, rollout_setup
from megarl.planning.fit import Fit, find_fit
from megarl.planning.head import HeadChoice, choose_head, with_head
from megarl.planning.nodes import PlacedRun
from megarl.planning.policy_memory import PolicyMemory, policy_setup, stages_memory
from megarl.planning.transfer import Publication, plan_publication, sending_bytes
from megarl.planning.turns import ASLEEP_BYTES, OF_ENGINES, SharedMemory, plan_shared
from megarl.planning.updates import Updates, plan_updates


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
class RunPlan:
    """The numbers of a layout that can work. Bytes are per GPU."""

    family: str
    dtype: str
    parameters: int
    gpu_memory_bytes: int
    layout: Layout
    policy: tuple[PolicyMemory, ...]
    """The stages that differ."""
    fit: Fit | None
    """What to change where the policy does not fit; None too where nothing was found."""
    rollout: RolloutMemory
    engine_that_starts: int | None
    """A number of workers per engine with which vLLM starts, where it does not; None too where none was found."""
    updates: tuple[Updates, ...]
    publication: Publication
    head: HeadChoice | None = None
    """What a run on such GPUs decides, where the configuration leaves the head open; the numbers are with it."""
    shared: SharedMemory | None = None
    """Phase by phase, where policy and engines share the GPUs."""

    @property
    def worst(self) -> PolicyMemory:
        """The fullest stage."""
        return max(self.policy, key=lambda stage: stage.total)

    @property
    def policy_limit(self) -> int:
        """Bytes of a GPU that the policy may have: not those of an engine that sleeps there."""
        return self.gpu_memory_bytes - (ASLEEP_BYTES if self.shared else 0)

    @property
    def policy_fits(self) -> bool:
        return self.worst.total <= self.policy_limit

    @property
    def rollout_fits(self) -> bool:
        """Room for one sequence, without which vLLM does not start, and for the staging memory."""
        beside = self.rollout.budget + self.rollout.staging
        if self.shared:
            beside = max(turn.total for turn in self.shared.turns if turn.name in OF_ENGINES)
        return self.rollout.starts and beside <= self.gpu_memory_bytes

    @property
    def fits(self) -> bool:
        return self.policy_fits and self.rollout_fits


def plan_run(placed: PlacedRun, shape: ModelShape, *, gpu_memory_gib: float, nodes_chosen: bool = False) -> RunPlan:
    """The numbers of a placed configuration in which nothing was found wrong (`checks`, `nodes`).

    nodes_chosen: somebody set cluster.nodes, so that a change that needs more of them names it.
    """
    limit = int(gpu_memory_gib * GIB)
    head = choose_head(placed.config, shape, gpu_bytes=limit) if placed.config.policy.head == "auto" else None
    config = with_head(placed.config, head) if head else placed.config
    publish = config.rollout.publish
    publication = plan_publication(
        shape,
        placed.topology,
        itemsize=config.model.itemsize,
        bucket_bytes=publish.bucket_mib << 20,
        shared_memory=publish.transport == "shared_memory",
    )
    kept = sending_bytes(publish)
    kept += publication.sent_max_bytes if publish.delta else 0
    policy = stages_memory(policy_setup(config, shape, publication=kept))
    policy_limit = limit - (ASLEEP_BYTES if config.cluster.colocate else 0)
    fits = max(stage.total for stage in policy) <= policy_limit
    engine = rollout_setup(config, shape, gpu_memory_gib=gpu_memory_gib, tensor=config.rollout.tensor)
    rollout = rollout_memory(engine)
    return RunPlan(
        family=shape.family,
        dtype=config.model.dtype,
        parameters=sum(math.prod(dims) for dims in hf_tensors(shape).values()),
        gpu_memory_bytes=limit,
        head=head,
        layout=_describe_layout(placed),
        policy=policy,
        fit=None if fits else find_fit(config, shape, limit=policy_limit, publication=kept, nodes_chosen=nodes_chosen),
        rollout=rollout,
        engine_that_starts=None if rollout.starts else find_engine(config, shape, gpu_memory_gib=gpu_memory_gib),
        updates=tuple(plan_updates(config)),
        publication=publication,
        shared=plan_shared(config, shape, policy, rollout, gpu_bytes=limit) if config.cluster.colocate else None,
    )


def _describe_layout(placed: PlacedRun) -> Layout:
    topology = placed.topology
    return Layout(
        policy_gpus=topology.grid.world_size,
        tensor=topology.grid.tensor,
        data=topology.grid.data,
        pipeline=topology.grid.pipeline,
        engines=topology.engines,
        engine_tensor=topology.tensor,
        gpus_per_node=placed.config.cluster.gpus_per_node,
        policy_nodes=(topology.policy_nodes[0], topology.policy_nodes[-1]),
        engine_nodes=(topology.worker_nodes[0], topology.worker_nodes[-1]),
        nodes=placed.num_nodes,
    )
