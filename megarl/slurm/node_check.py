"""`python -m megarl.slurm.node_check`: whether a node is fit for a run, before anything starts on it.

What megarl's own killed runs, and NCCL's, have left on it is removed. What is then wrong goes line by line to standard
output and to NODE.unfit in the directory of the attempt's logs; exit code 1. GPUs are asked by nvidia-smi and NCCL.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from megarl.runtime.leftovers import clean_killed_runs, mapped_inodes

SHM = Path("/dev/shm")
GIB = 2**30
_NUM_PORTS = 9
"""From the first on, that Ray is told by number."""
_MAX_CLOCK_DIFFERENCE_S = 5.0
_MAX_GPU_USED_MIB = 1024
"""A GPU without processes shows some memory of the driver's own."""
_SMI_TIMEOUT_S = 60.0
_LOOPBACK_TIMEOUT_S = 180.0
_INFINIBAND = Path("/sys/class/infiniband")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what makes this node unfit, and keep it in the report's directory; 1 where anything does."""
    options = _parse(arguments)
    remove_leftovers()
    problems = list(find_problems(options))
    for problem in problems:
        print(f"unfit: {problem}", flush=True)
    if problems:
        (options.report / f"{options.node}.unfit").write_text("\n".join(problems) + "\n", encoding="utf-8")
        return 1
    print("this node is fit", flush=True)
    return 0


def find_problems(options: argparse.Namespace) -> Iterator[str]:
    """The quick checks first; NCCL only where the GPUs are as they should be."""
    yield from check_paths(options.paths)
    yield from check_room(SHM, options.shm_gib, "shared memory, for Ray's objects, weights and NCCL")
    yield from check_room(Path(tempfile.gettempdir()), options.scratch_gib, "Ray's and vLLM's files")
    yield from check_clock(options.report, options.node)
    yield from check_ports(range(options.ports, options.ports + _NUM_PORTS))
    yield from check_route(options.head)
    if options.gpus:
        yield from check_infiniband(_INFINIBAND)
        problems = list(check_gpus(options.gpus))
        yield from problems or check_collectives("nccl", options.gpus)


def remove_leftovers() -> None:
    """Of runs whose driver is gone; and NCCL's files in shared memory, of this user, that no process maps."""
    clean_killed_runs()
    held = mapped_inodes()
    for path in SHM.glob("nccl-*"):
        with suppress(OSError):
            if path.stat().st_uid == os.getuid() and path.stat().st_ino not in held:
                path.unlink()
                print(f"removed {path}", flush=True)


def check_paths(paths: Iterable[Path]) -> Iterator[str]:
    """What the run reads and writes is seen from here."""
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            yield f"{path} is not seen from this node ({error.strerror}); put it on a file system that all nodes share"


def check_room(directory: Path, needed_gib: float, what: str) -> Iterator[str]:
    """A file can be written there, and so many GiB are free."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
        free = shutil.disk_usage(directory).free
    except OSError as error:
        yield f"{directory} cannot be written to ({error.strerror})"
        return
    if free < needed_gib * GIB:
        yield f"{directory} has {free / GIB:.1f} GiB free, expected {needed_gib:g} GiB ({what})"


def check_clock(shared: Path, node: str) -> Iterator[str]:
    """By the file server's: nodes whose clocks differ tell lies about the age of a heartbeat."""
    path = shared / f".{node}.clock"
    try:
        before = time.time()
        path.write_text("")
        written, after = path.stat().st_mtime, time.time()
        path.unlink()
    except OSError as error:
        yield f"{shared} cannot be written to from this node ({error.strerror})"
        return
    difference = max(before - written, written - after, 0.0)
    if difference > _MAX_CLOCK_DIFFERENCE_S:
        yield f"this node's clock and that of the file system of {shared} differ by {difference:.0f} s; set it by NTP"


def check_ports(ports: Iterable[int]) -> Iterator[str]:
    """Nobody listens on any of them."""
    taken = []
    for port in ports:
        with closing(socket.socket()) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except OSError:
                taken.append(str(port))
    if taken:
        yield f"ports {', '.join(taken)}, which Ray is to have, are in use here"


def check_route(head: str) -> Iterator[str]:
    """This node has an address by which the head can be reached, and its interface is up."""
    try:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect((head, 9))
    except OSError as error:
        yield f"the head node's address {head} cannot be reached from here ({error.strerror}); see --interface"


def check_infiniband(devices: Path) -> Iterator[str]:
    """Where there are InfiniBand or RoCE adapters, all of their ports that have a cable are up."""
    for state in sorted(devices.glob("*/ports/*/state")):
        port = state.parent
        text = state.read_text(encoding="ascii").strip()
        plugged = "LinkUp" in (port / "phys_state").read_text(encoding="ascii")
        if plugged and "ACTIVE" not in text:
            yield f"network adapter {port.parents[1].name}, port {port.name}, is {text}, expected ACTIVE"


def check_gpus(expected: int) -> Iterator[str]:
    """There are as many as the run was given, and nobody else uses them."""
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"nvidia-smi does not answer: {error}"
        return
    if done.returncode:
        yield f"nvidia-smi ended with exit code {done.returncode}: {(done.stderr or done.stdout).strip()}"
        return
    yield from judge_gpus(done.stdout, expected)


def judge_gpus(listing: str, expected: int) -> Iterator[str]:
    """listing: "index, MiB used" a line."""
    used = dict(line.split(", ") for line in listing.strip().splitlines())
    if len(used) < expected:
        yield f"nvidia-smi lists {len(used)} GPUs, expected {expected}"
    for index, mib in used.items():
        if not mib.isdecimal():
            yield f"GPU {index} does not say how much of its memory is used ({mib})"
        elif int(mib) > _MAX_GPU_USED_MIB:
            yield f"GPU {index} has {mib} MiB in use by others; `nvidia-smi` on the node lists the processes"


def check_collectives(backend: str, ranks: int) -> Iterator[str]:
    """The GPUs of this node can add up a tensor among each other."""
    command = [sys.executable, "-m", "megarl.slurm.loopback", backend, str(ranks)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOOPBACK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield f"{backend} among {ranks} ranks on this node did not end within {_LOOPBACK_TIMEOUT_S:g} s"
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        yield f"{backend} among {ranks} ranks on this node failed: {lines[-1] if lines else done.returncode}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m megarl.slurm.node_check")
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--node", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--shm-gib", type=float, required=True)
    parser.add_argument("--scratch-gib", type=float, required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--ports", type=int, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
