"""Ray: started on this machine or joined, and where in it the workers live."""

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.parallel.device import built_for_cuda
from megarl.runtime.closing import undisturbed
from megarl.runtime.leftovers import process_marks
from megarl.runtime.ray_address import RayAddress, check_address, find_address
from megarl.runtime.ray_thread import RayThread
from megarl.runtime.ray_token import check_token, guard_local_ray
from megarl.telemetry.leases import Lease

_PLACEMENT_TIMEOUT_S = 120.0
_INIT_TIMEOUT_S = 180.0
"""Ray's own limits of a start on this machine are shorter; joining takes seconds once the head has answered."""
_SHUTDOWN_TIMEOUT_S = 45.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Bundles of the placement group: one per policy rank, then one per engine; an engine never spans nodes."""

    group: PlacementGroup
    on_gpu: bool
    rank_bundles: tuple[int, ...]
    """Bundle of each policy rank: neighbouring ranks share a node, so tensor ranks do."""
    engine_bundles: tuple[int, ...]
    gpus_per_engine: int

    def policy_rank(self, rank: int) -> dict[str, Any]:
        """Ray options of a policy rank."""
        return self._options(self.rank_bundles[rank], gpus=1)

    def engine(self, index: int) -> dict[str, Any]:
        """Ray options of an engine."""
        return self._options(self.engine_bundles[index], gpus=self.gpus_per_engine)

    def _options(self, bundle: int, *, gpus: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {"num_cpus": 1, "num_gpus": gpus if self.on_gpu else 0, "scheduling_strategy": strategy}


async def check_cluster(config: RunConfig) -> None:
    """ConfigError, within a minute, when the cluster to join does not answer; nothing is joined."""
    address = find_address(config.cluster.ray_address)
    if address is not None:
        await check_address(address)


@asynccontextmanager
async def ray_cluster(config: RunConfig, *, num_engines: int) -> AsyncIterator[Placement]:
    """Join `cluster.ray_address` (or RAY_ADDRESS), else start Ray here; then reserve a place for every worker.

    Where the cluster has no GPU a worker counts as one logical CPU, however many cores there are: policy and engines
    take turns. ConfigError when the cluster cannot be joined or is too small. At the end of the block every actor of
    the run is ended, and a Ray that was started here with all its files.
    """
    address = find_address(config.cluster.ray_address)
    thread, lease = RayThread(), Lease.take("run")
    try:
        yield await _start(thread, lease, config, address, num_engines=num_engines)
    finally:
        await undisturbed(_stop(thread, lease))


async def _start(
    thread: RayThread, lease: Lease, config: RunConfig, address: RayAddress | None, *, num_engines: int
) -> Placement:
    def start() -> None:
        session = start_ray(config, address, num_engines=num_engines)
        if address is None:
            lease.note([session])  # here: also when nobody waits for the start any more

    try:
        await thread.call(start, timeout_s=_INIT_TIMEOUT_S)
        reserve = functools.partial(_reserve, config, num_engines=num_engines, given_up=thread.given_up)
        return await thread.call(reserve, timeout_s=2 * _PLACEMENT_TIMEOUT_S)
    except TimeoutError:
        where = f"the Ray cluster at {address} was not joined" if address else "Ray did not start on this machine"
        text = f"{where} within {_INIT_TIMEOUT_S:g} s; Ray's own logs say why, below /tmp/ray/session_latest/logs"
        raise ConfigError(text) from None


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


def start_ray(config: RunConfig, address: RayAddress | None, *, num_engines: int) -> Path:
    """Join the cluster, or start one here; blocks. Returns Ray's directory on this machine.

    ConfigError when that fails.
    """
    # Ray would report to its makers and print a notice into the training log.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors without GPUs must still see CUDA's absence the way the driver does.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    workers = config.parallel.world_size + num_engines
    local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    if not address:
        guard_local_ray()
    if not address and not built_for_cuda():
        local["num_gpus"] = 0  # Ray finds GPUs by the driver; a CPU installation cannot use them
    try:
        # Without "local" Ray would join any cluster it finds on this machine.
        where = address.text if address else "local"
        context = ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        doing = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ConfigError(f"cannot {doing}: {error}") from error
    check_token(joined=address is not None)
    return Path(context.address_info["session_dir"])


def _reserve(config: RunConfig, *, num_engines: int, given_up: threading.Event) -> Placement:
    resources = ray.cluster_resources()
    on_gpu = built_for_cuda() and resources.get("GPU", 0) > 0
    ranks, tensor = config.parallel.world_size, config.rollout.tensor
    bundles = [{"CPU": 1.0, "GPU": 1.0} if on_gpu else {"CPU": 1.0}] * ranks
    bundles += [{"CPU": 1.0, "GPU": float(tensor)} if on_gpu else {"CPU": 1.0}] * num_engines
    group = ray.util.placement_group(bundles, strategy="PACK")
    deadline = time.monotonic() + _PLACEMENT_TIMEOUT_S
    while not (placed := group.wait(1.0)) and time.monotonic() < deadline and not given_up.is_set():
        pass
    if not placed:
        needed = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in bundles[0]}
        found = {kind: resources.get(kind, 0.0) for kind in needed}
        raise ConfigError(
            f"the Ray cluster cannot place {ranks} policy ranks and {num_engines} engines of {tensor}: needed "
            f"{needed}, found {found}; an engine must fit on one node. Add nodes, free them of other jobs, or lower "
            "parallel.world_size or rollout.engines"
        )
    node_of = ray.util.placement_group_table(group)["bundles_to_node_id"]
    by_node = sorted(range(ranks), key=lambda bundle: (node_of[bundle], bundle))
    _check_tensor_groups([node_of[bundle] for bundle in by_node], tensor_ranks=config.parallel.tensor)
    return Placement(group, on_gpu, tuple(by_node), tuple(range(ranks, ranks + num_engines)), tensor)


def _check_tensor_groups(nodes: list[str], *, tensor_ranks: int) -> None:
    """ConfigError when tensor-parallel neighbours, `tensor_ranks` entries in a row, are not on one node."""
    for start in range(0, len(nodes), tensor_ranks):
        if len(set(nodes[start : start + tensor_ranks])) > 1:
            raise ConfigError(
                f"policy ranks {start} to {start + tensor_ranks - 1} are one tensor-parallel group and lie on several "
                f"nodes: a node has room for a number of ranks that parallel.tensor {tensor_ranks} does not divide. "
                "Give the run whole nodes, or choose rollout.engines x tensor so that whole groups fit"
            )


def start_actor(shell: Any, options: dict[str, Any], *args: Any, env_vars: dict[str, str] | None = None) -> Any:
    """A Ray actor of `shell` (from `ray.remote`), marked as the run's. Returns its handle before the process is up."""
    environment = {"env_vars": process_marks() | (env_vars or {})}
    return shell.options(**options, runtime_env=environment).remote(*args)
