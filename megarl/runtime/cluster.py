"""Ray: started on this machine or joined, and where in it the workers live."""

import functools
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import ray
import ray.util
from ray._private.state import available_resources_per_node
from ray.util.placement_group import NODE_ID_LABEL_KEY, PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.parallel.device import built_for_cuda
from megarl.planning.placement import PlacementPlan, by_topology, plan_placement
from megarl.planning.resources import Node, Resources, Workers
from megarl.planning.shortage import ScatteredError, ShortageError
from megarl.runtime.closing import undisturbed
from megarl.runtime.keeper import GROUP, Keeper
from megarl.runtime.leftovers import process_marks
from megarl.runtime.node_links import NodeLinks, ask_nodes
from megarl.runtime.ray_address import RayAddress, check_address, find_address
from megarl.runtime.ray_start import start_ray
from megarl.runtime.ray_thread import RayThread
from megarl.runtime.workers import BESIDE, LIVENESS, STACKS, Answering, Worker, WorkerName
from megarl.telemetry.leases import Lease
from megarl.telemetry.process_mark import WORKER_VARIABLE

_PLACEMENT_TIMEOUT_S = 120.0
_SAY_AFTER_S = 5.0
_RESERVE_TIMEOUT_S = 30.0
_POLL_S = 0.2
_INIT_TIMEOUT_S = 180.0
"""Ray's own limits of a start on this machine are shorter; joining takes seconds once the head has answered."""
_SHUTDOWN_TIMEOUT_S = 45.0

_log = logging.getLogger(__name__)

A = TypeVar("A", bound=Answering)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Bundles of the placement group: one per policy rank, in rank order, then one per engine that has its own."""

    group: PlacementGroup
    workers: Workers
    plan: PlacementPlan
    keeper: Keeper | None = None
    """Whose the places are, and the engines on them; None where they end with the run."""

    def policy_rank(self, rank: int) -> dict[str, Any]:
        """Ray options of a policy rank."""
        return self._options(rank, self.workers.half if self.workers.shared else self.workers.rank_needs)

    def engine(self, index: int) -> dict[str, Any]:
        """Ray options of an engine. One that shares GPUs is Ray's half of the first; all of them are reserved."""
        if self.workers.shared:
            return self._options(self.plan.engine_ranks[index][0], self.workers.half)
        return self._options(self.workers.ranks + index, self.workers.engine_needs)

    @property
    def shares_gpus(self) -> bool:
        """Whether a policy rank and an engine have one GPU together (`runtime.shared_gpus`)."""
        return self.workers.shared and self.workers.on_gpu

    def _options(self, bundle: int, needs: Resources) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "scheduling_strategy": strategy}


async def check_cluster(config: RunConfig) -> None:
    """ConfigError, within a minute, when the cluster to join does not answer; nothing is joined."""
    address = find_address(config.cluster.ray_address)
    if address is not None:
        await check_address(address)


@asynccontextmanager
async def ray_cluster(config: RunConfig, *, num_engines: int, keeper: Keeper | None = None) -> AsyncIterator[Placement]:
    """Join `cluster.ray_address` (or RAY_ADDRESS), else start Ray here; then reserve a place for every worker.

    Every worker is on the node that `plan_placement` gives it. ConfigError when the cluster cannot be joined or is too
    small. At the end of the block every actor of the run is ended, and a Ray that was started here with all its files.

    keeper: whose Ray is joined instead. What it keeps stays, or ends too (`Keeper.close`).
    """
    thread, lease = RayThread(), Lease.take("run")
    try:
        address = find_address(config.cluster.ray_address) if keeper is None else await keeper.find_ray()
        await _start(thread, lease, config, address, num_engines=num_engines)
        reserve = functools.partial(
            _reserve,
            config,
            num_engines=num_engines,
            joined=address is not None,
            keeper=keeper,
            given_up=thread.given_up,
        )
        yield await _within_limit(thread.call(reserve, timeout_s=2 * _PLACEMENT_TIMEOUT_S), address)
    finally:
        await undisturbed(_close(thread, lease, keeper))


@asynccontextmanager
async def kept_ray(config: RunConfig) -> AsyncIterator[str]:
    """In a keeper: start Ray for such runs, one at a time; its address. It ends with all that they have left.

    ConfigError where it does not start.
    """
    thread, lease = RayThread(), Lease.take("run")
    try:
        await _start(thread, lease, config, None, num_engines=config.rollout.engines)
        yield ray.get_runtime_context().gcs_address
    finally:
        await undisturbed(_stop(thread, lease))


async def _start(
    thread: RayThread, lease: Lease, config: RunConfig, address: RayAddress | None, *, num_engines: int
) -> None:
    def start() -> None:
        session = start_ray(config, address, num_engines=num_engines)
        if address is None:
            lease.note([session])  # here: also when nobody waits for the start any more

    await _within_limit(thread.call(start, timeout_s=_INIT_TIMEOUT_S), address)


async def _within_limit(starting: Awaitable[T], address: RayAddress | None) -> T:
    try:
        return await starting
    except TimeoutError:
        where = f"the Ray cluster at {address} was not joined" if address else "Ray did not start on this machine"
        text = f"{where} within {_INIT_TIMEOUT_S:g} s; Ray's own logs say why, below /tmp/ray/session_latest/logs"
        raise ConfigError(text) from None


async def _close(thread: RayThread, lease: Lease, keeper: Keeper | None) -> None:
    await _stop(thread, lease)
    if keeper is not None:
        await keeper.close()


async def _stop(thread: RayThread, lease: Lease) -> None:
    """End every actor of this run; safe when Ray never started. Bounded: what is left is killed by its mark."""
    try:
        await thread.call(_shut_down, timeout_s=_SHUTDOWN_TIMEOUT_S)
    except TimeoutError:
        _log.warning("Ray did not end within %g s; its processes are killed", _SHUTDOWN_TIMEOUT_S)
        return  # the lease stays: whoever cleans up after the processes removes what it names
    for path in lease.extra():
        shutil.rmtree(path, ignore_errors=True)
    lease.release()


def _shut_down() -> None:
    if ray.is_initialized():
        ray.shutdown()


def _reserve(
    config: RunConfig, *, num_engines: int, joined: bool, given_up: threading.Event, keeper: Keeper | None = None
) -> Placement:
    """Reserve what is planned on the nodes as they are, and plan anew while nodes join or other jobs are faster.

    joined: the cluster was there before and may grow. keeper: whose cluster it is, for such runs alone.
    """
    on_gpu = built_for_cuda() and ray.cluster_resources().get("GPU", 0) > 0
    workers = Workers.of(config, engines=num_engines, on_gpu=on_gpu)
    if keeper is not None and keeper.has_engines:
        # On which the first run has planned, when nothing of them was taken.
        plan = plan_placement([replace(node, free=node.total or node.free) for node in _find_nodes({})], workers)
        return Placement(ray.util.get_placement_group(GROUP), workers, plan, keeper)
    started_s = time.monotonic()
    links: dict[str, NodeLinks] = {}
    said = False
    while True:
        free = _find_nodes(links)
        refuse_impossible(free, workers, expected=config.cluster.nodes, may_grow=joined)
        try:
            plan = plan_placement(free, workers)
            if group := _place(plan, free, workers, given_up=given_up, stays=keeper is not None):
                return Placement(group, workers, plan, keeper)
            problem = ConfigError(f"the Ray cluster had room for {workers}, and other jobs or a lost node took it")
        except ShortageError as error:
            problem = error
        waited_s = time.monotonic() - started_s
        if waited_s > _PLACEMENT_TIMEOUT_S or given_up.is_set():
            raise problem
        if waited_s > _SAY_AFTER_S and not said:
            _log.warning("waiting for nodes, for %g s at most: %s", _PLACEMENT_TIMEOUT_S, problem)
            said = True
        time.sleep(_POLL_S)


def _find_nodes(links: MutableMapping[str, NodeLinks]) -> list[Node]:
    """The nodes that are up, neighbours in the network beside each other, with what no job has taken.

    links: of the nodes that were asked before, by Ray's name of them; where there are several, new ones are asked.
    """
    free = available_resources_per_node()
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] in free}
    if len(alive) > 1 and (new := alive.keys() - links.keys()):
        links.update(ask_nodes(sorted(new)))
    return by_topology(
        Node(
            node["NodeManagerAddress"],
            free[ray_id],
            ray_id,
            total=node["Resources"],
            domain=links.get(ray_id, NodeLinks()).domain,
            switches=links.get(ray_id, NodeLinks()).switches,
        )
        for ray_id, node in alive.items()
    )


def refuse_impossible(nodes: Sequence[Node], workers: Workers, *, expected: int, may_grow: bool) -> None:
    """ShortageError at once where waiting for other jobs would not help, and more nodes are not to come.

    expected: nodes that a cluster which may grow has; when they are there, and have enough in all but not where it is
    needed together, more of the same are not waited for.
    """
    if not nodes:
        return
    try:
        plan_placement([replace(node, free=node.total or node.free) for node in nodes], workers)
    except ShortageError as error:
        if not may_grow or (len(nodes) >= expected and isinstance(error, ScatteredError)):
            raise


def _place(
    plan: PlacementPlan, nodes: Sequence[Node], workers: Workers, *, given_up: threading.Event, stays: bool = False
) -> PlacementGroup | None:
    """The group of the plan's bundles, each on its node; None, and nothing reserved, where they do not come soon.

    stays: when this process has ended, for others that know it as GROUP.
    """
    own = () if workers.shared else plan.engine_nodes
    bundles = [workers.rank_needs] * workers.ranks + [workers.engine_needs] * len(own)
    places = [{NODE_ID_LABEL_KEY: nodes[at].ray_id} for at in (*plan.rank_nodes, *own)]
    lasting: dict[str, Any] = {"name": GROUP, "lifetime": "detached"} if stays else {}
    group = ray.util.placement_group(bundles, strategy="PACK", bundle_label_selector=places, **lasting)
    deadline = time.monotonic() + _RESERVE_TIMEOUT_S
    while not (placed := group.wait(1.0)) and time.monotonic() < deadline and not given_up.is_set():
        pass
    if not placed:
        ray.util.remove_placement_group(group)
    return group if placed else None


def start_worker(
    name: WorkerName,
    kind: Callable[P, A],
    options: dict[str, Any],
    env_vars: Mapping[str, str],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Worker[A]:
    """An actor of class `kind`, made with the arguments, marked as the run's and as this worker. Returns before its
    process is up.

    options: Ray's. env_vars: of its process, beside the marks, or others in their place. Its `answer` and its `stacks`
    have a thread, or an event loop, of their own each.
    """
    environment = {"env_vars": {**process_marks(), WORKER_VARIABLE: f"{name.role}-{name.rank}", **env_vars}}
    return Worker(name, _remote(kind).options(**options, runtime_env=environment).remote(*args, **kwargs))


@functools.cache
def _remote(kind: Callable[..., Any]) -> Any:
    return ray.remote(concurrency_groups={LIVENESS: 1, BESIDE: 1, STACKS: 1})(kind)
