"""Ray joined, or started on this machine, and once more where that was too busy for Ray's own patience."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.parallel.device import built_for_cuda
from megarl.planning.resources import Workers
from megarl.runtime.ray_address import RayAddress
from megarl.runtime.ray_token import check_token, guard_local_ray, stay_on_this_machine

_ATTEMPTS = 2
_TOO_SLOW = "timed out during startup"
"""In what Ray raises when its processes have not found each other after 30 s, a limit that cannot be set."""
_END_S = 10.0
NAMESPACE = "megarl"
"""Ray's, of the names that actors and places have for other runs."""

_log = logging.getLogger(__name__)


def start_ray(config: RunConfig, address: RayAddress | None, *, num_engines: int) -> Path:
    """Join the cluster, or start one here; blocks. Returns Ray's directory on this machine.

    ConfigError when that fails.
    """
    # Ray would report to its makers and print a notice into the training log.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors without GPUs must still see CUDA's absence the way the driver does.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # With a GPU beside each rank a place has CPUs for two; without, both take turns on one.
    workers = Workers.of(config, engines=num_engines, on_gpu=built_for_cuda())
    local: dict[str, Any] = {} if address else {"num_cpus": int(workers.needs["CPU"]), "include_dashboard": False}
    if not address:
        guard_local_ray()
    if not address and not built_for_cuda():
        local["num_gpus"] = 0  # Ray finds GPUs by the driver; a CPU installation cannot use them
    if address and address.is_guarded:
        stay_on_this_machine()
    try:
        if address:
            context = ray.init(
                address=address.text, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False
            )
        else:
            context = start_local_ray(**local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        doing = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ConfigError(f"cannot {doing}: {error}") from error
    check_token(joined=address is not None)
    return Path(context.address_info["session_dir"])


def start_local_ray(**options: Any) -> Any:
    """`ray.init` of a Ray of this process's own; options: further ones of it.

    Raises:
        RuntimeError: its processes did not find each other in time, `_ATTEMPTS` times; none is left.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        before = {child.pid for child in psutil.Process().children()}
        try:
            # Without "local" Ray would join any cluster it finds on this machine.
            return ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as error:
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            _end_daemons(before)
            load = f"its load is {os.getloadavg()[0]:.0f} on {os.cpu_count()} processors"
            if attempt == _ATTEMPTS:
                raise RuntimeError(
                    f"Ray's processes did not find each other within 30 s, {attempt} times in a row; this machine is "
                    f"too busy ({load}): start again when it is less so"
                ) from error
            _log.warning("Ray's processes did not find each other within 30 s (%s); starting it once more", load)
    raise AssertionError


def _end_daemons(before: set[int]) -> None:
    """End what Ray has started since this process had the children `before`."""
    package = str(Path(ray.__file__).parent)
    started = [child for child in psutil.Process().children() if child.pid not in before]
    ended: list[psutil.Process] = []
    for child in started:
        with suppress(psutil.Error):
            if package in " ".join(child.cmdline()) or child.name().startswith("ray"):
                ended += [*child.children(recursive=True), child]
    for process in ended:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ended, timeout=_END_S)
