"""What a control group leaves of a machine, from trees of files as kernels show them."""

import os
from pathlib import Path

import psutil
import pytest

from megarl.telemetry.machine_limits import available_memory, usable_cores

GIB = 2**30
FREE, CORES = 64 * GIB, 8


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = FREE

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))


def write(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def limits(tmp_path: Path, own: str) -> tuple[float, float]:
    (tmp_path / "own").write_text(own)
    paths = (tmp_path / "cgroup", tmp_path / "own")
    return available_memory(*paths) / GIB, usable_cores(*paths)


@pytest.mark.usefixtures("machine")
def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    job = tmp_path / "cgroup" / "slurm" / "job_7"
    write(job.parent, {"memory.max": 40 * GIB, "memory.current": 30 * GIB, "cpu.max": "400000 100000"})
    write(job, {"memory.max": "max", "memory.current": 5 * GIB, "cpu.max": "max 100000"})
    write(job.parent, {"memory.stat": f"anon {9 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\nshmem {GIB}"})
    assert limits(tmp_path, "0::/slurm/job_7\n") == (12, 4)
    write(job, {"memory.max": 8 * GIB, "cpu.max": "150000 100000"})
    assert limits(tmp_path, "0::/slurm/job_7\n") == (3, 1.5)
    write(job, {"memory.current": 9 * GIB})
    assert limits(tmp_path, "0::/slurm/job_7\n")[0] == 0  # over its limit for a moment


@pytest.mark.usefixtures("machine")
def test_in_a_container_the_group_is_at_the_root_of_what_is_mounted(tmp_path: Path) -> None:
    write(tmp_path / "cgroup", {"memory.max": 10 * GIB, "memory.current": GIB, "cpu.max": "200000 100000"})
    assert limits(tmp_path, "0::/docker/0123\n") == limits(tmp_path, "0::/\n") == (9, 2)


@pytest.mark.usefixtures("machine")
def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "memory" / "job"
    write(group, {"memory.limit_in_bytes": 20 * GIB, "memory.usage_in_bytes": 18 * GIB})
    write(group, {"memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\nactive_file 0"})
    write(tmp_path / "cgroup" / "cpu,cpuacct" / "job", {"cpu.cfs_quota_us": 300000, "cpu.cfs_period_us": 100000})
    own = "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n"
    assert limits(tmp_path, own) == (3, 3)
    write(tmp_path / "cgroup" / "cpu,cpuacct" / "job", {"cpu.cfs_quota_us": -1})
    write(group, {"memory.limit_in_bytes": 2**63 - 4096})  # as the kernel says "none"
    assert limits(tmp_path, own) == (64, 8)


@pytest.mark.usefixtures("machine")
def test_version_1_may_name_its_controllers_in_another_order_than_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "cpu,cpuacct"
    write(folder / "job", {"cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000})
    (tmp_path / "cgroup" / "cpu").symlink_to(folder)
    for names in ("cpuacct,cpu", "cpu,cpuacct"):
        assert limits(tmp_path, f"3:{names}:/job\n") == (64, 0.5)


@pytest.mark.usefixtures("machine")
def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert limits(tmp_path, "") == limits(tmp_path, "0::/nowhere\nnonsense\n") == (64, 8)
    assert available_memory(tmp_path, tmp_path / "absent") == FREE
    assert usable_cores(tmp_path, tmp_path / "absent") == CORES
    write(tmp_path / "cgroup", {"memory.max": "damaged", "memory.current": "", "cpu.max": "", "memory.stat": "x"})
    assert limits(tmp_path, "0::/\n") == (64, 8)


def test_of_this_process_it_is_no_more_than_the_machine() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert 0 < usable_cores() <= len(os.sched_getaffinity(0))
