"""How much memory and how many cores this process may use: the machine's, or what its control groups leave of them.

A container or a Slurm job often has less than its node. The kernel says so in control groups (version 2:
docs.kernel.org/admin-guide/cgroup-v2.html, version 1: .../cgroup-v1/memory.html and scheduler/sched-bwc.html); what a
group may use is bounded by every group above it as well.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMORY = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""(limit, use) of version 2 and of version 1."""
_CACHED = ("inactive_file", "active_file", "slab_reclaimable")
"""Of memory.stat: what the kernel gives back when it is asked for more; "total_": in version 1, with groups below."""


def available_memory(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Bytes that this process can still take without the kernel ending one."""
    rooms = [room for group in _groups("memory", root, own) for room in _room(group)]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def usable_cores(root: Path = _ROOT, own: Path = _OWN) -> float:
    """Cores that this process may be on, or the share of time that it has on them where that is less."""
    quotas = [quota for group in _groups("cpu", root, own) for quota in _quota(group)]
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """This process's group of a controller and all above it, as far as they can be seen: in a container the path is
    often that of the host, and the group is at the root of what is mounted."""
    try:
        lines = own.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if names == "" or controller in names.split(","):
            # Version 1 names the folder by all its controllers, sometimes in another order, and links each to it.
            top = root / controller if names and (root / controller).is_dir() else root / names
            group = top / path.lstrip("/")
            yield from (one for one in (group, *group.parents) if one.is_relative_to(top) and one.is_dir())


def _room(group: Path) -> Iterator[int]:
    for limit_name, use_name in _MEMORY:
        limit, use = _number(group / limit_name), _number(group / use_name)
        if limit is not None and use is not None:
            yield int(limit - use + _cached(group / "memory.stat"))


def _cached(path: Path) -> float:
    try:
        stat = dict(line.split()[:2] for line in path.read_text(encoding="ascii").splitlines() if line.strip())
        return sum(float(stat.get(f"total_{name}", stat.get(name, 0))) for name in _CACHED)
    except (OSError, ValueError):
        return 0.0


def _quota(group: Path) -> Iterator[float]:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            yield float(quota) / float(period)
    except (OSError, ValueError):
        pass
    limit, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    if limit is not None and period_us and limit > 0:
        yield limit / period_us


def _number(path: Path) -> float | None:
    """None where there is no such file, or "max" in it."""
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
