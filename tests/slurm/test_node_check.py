"""Whether a node is fit: each fault made, and told in its words."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.slurm import node_check
from megarl.slurm.node_check import (
    check_clock,
    check_collectives,
    check_gpus,
    check_infiniband,
    check_paths,
    check_ports,
    check_room,
    check_route,
    judge_gpus,
    main,
    remove_leftovers,
)


def test_paths_that_a_node_does_not_see(tmp_path: Path) -> None:
    assert list(check_paths([tmp_path])) == []
    (problem,) = check_paths([tmp_path, tmp_path / "absent"])
    assert problem.startswith(f"{tmp_path / 'absent'} is not seen from this node (No such file or directory)")


def test_room(tmp_path: Path) -> None:
    assert list(check_room(tmp_path, 0.001, "x")) == []
    free_gib = shutil.disk_usage(tmp_path).free / 2**30
    (problem,) = check_room(tmp_path, 10 * free_gib, "weights")
    assert "GiB free, expected" in problem
    assert problem.endswith("(weights)")
    assert "cannot be written to (No such file or directory)" in next(check_room(tmp_path / "absent", 0.001, "x"))


def test_a_clock_that_is_another_than_the_file_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_clock(tmp_path, "n1")) == []
    assert list(tmp_path.iterdir()) == []
    real = node_check.time.time
    monkeypatch.setattr(node_check.time, "time", lambda: real() + 40)
    (problem,) = check_clock(tmp_path, "n1")
    assert problem.endswith("differ by 40 s; set it by NTP")
    monkeypatch.setattr(node_check.time, "time", lambda: real() - 40)
    assert len(list(check_clock(tmp_path, "n1"))) == 1


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_ports_that_are_in_use(taken: int) -> None:
    assert list(check_ports([taken])) == [f"ports {taken}, which Ray is to have, are in use here"]


def test_a_route_to_the_head() -> None:
    assert list(check_route("127.0.0.1")) == []
    (problem,) = check_route("255.255.255.255")  # a broadcast needs a permission that the check has not
    assert problem.startswith("the head node's address 255.255.255.255 cannot be reached from here")


def test_adapters_that_have_a_cable_are_up(tmp_path: Path) -> None:
    for device, state, physical in (
        ("mlx5_0", "4: ACTIVE", "5: LinkUp"),
        ("mlx5_1", "1: DOWN", "3: Disabled"),
        ("mlx5_2", "2: INIT", "5: LinkUp"),
    ):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "phys_state").write_text(f"{physical}\n")
    assert list(check_infiniband(tmp_path)) == ["network adapter mlx5_2, port 1, is 2: INIT, expected ACTIVE"]
    assert list(check_infiniband(tmp_path / "absent")) == []


def test_gpus_are_there_and_nobody_uses_them() -> None:
    assert list(judge_gpus("0, 4\n1, 600\n", 2)) == []
    assert list(judge_gpus("0, 4\n1, 40000\n2, [N/A]\n", 4)) == [
        "nvidia-smi lists 3 GPUs, expected 4",
        "GPU 1 has 40000 MiB in use by others; `nvidia-smi` on the node lists the processes",
        "GPU 2 does not say how much of its memory is used ([N/A])",
    ]


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(check_gpus(1)).startswith("nvidia-smi does not answer: ")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVML: Driver/library version mismatch' >&2\nexit 18\n")
    program.chmod(0o755)
    assert list(check_gpus(1)) == ["nvidia-smi ended with exit code 18: NVML: Driver/library version mismatch"]
    program.write_text("#!/bin/sh\necho '0, 3'\n")
    assert list(check_gpus(1)) == []


def test_processes_of_a_node_add_up_a_tensor() -> None:
    assert list(check_collectives("gloo", 2)) == []


def test_a_collective_that_fails_is_told_in_its_own_words() -> None:
    (problem,) = check_collectives("no-such-backend", 1)
    assert problem.startswith("no-such-backend among 1 ranks on this node failed: ")


def test_files_of_nccl_that_nobody_maps_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_check, "SHM", tmp_path)
    monkeypatch.setattr(node_check, "clean_killed_runs", lambda: None)
    for name in ("nccl-a", "nccl-mapped", "other"):
        (tmp_path / name).write_text("x")
    held = (tmp_path / "nccl-mapped").stat().st_ino
    monkeypatch.setattr(node_check, "mapped_inodes", lambda: {held})
    remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nccl-mapped", "other"]


def test_a_fit_node_and_one_that_is_not(
    tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_check, "remove_leftovers", lambda: None)
    monkeypatch.setattr(node_check, "_NUM_PORTS", 1)
    options = ["--node", "n1", "--report", str(tmp_path), "--gpus", "0", "--scratch-gib", "0.001"]
    options += ["--head", "127.0.0.1"]
    with socket.socket() as probe:
        probe.bind(("", 0))
        free = probe.getsockname()[1]
    assert main([*options, "--shm-gib", "0.001", "--ports", str(free), str(tmp_path)]) == 0
    assert capsys.readouterr().out == "this node is fit\n"
    assert not (tmp_path / "n1.unfit").exists()
    assert main([*options, "--shm-gib", "1e6", "--ports", str(taken), "/absent"]) == 1
    told = (tmp_path / "n1.unfit").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["/absent", "/dev/shm", "ports"]
    assert capsys.readouterr().out.splitlines() == [f"unfit: {line}" for line in told]


def test_it_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megarl.slurm.node_check", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "--shm-gib" in done.stdout
