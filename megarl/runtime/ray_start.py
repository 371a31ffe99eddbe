"""A Ray on this machine: started, and once more where the machine was too busy for Ray's own patience."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray

_ATTEMPTS = 2
_TOO_SLOW = "timed out during startup"
"""In what Ray raises when its processes have not found each other after 30 s, a limit that cannot be set."""
_END_S = 10.0

_log = logging.getLogger(__name__)


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
