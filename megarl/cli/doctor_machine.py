"""Doctor's checks of the machine: devices, memory, disk, network ports, Ray, Slurm."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from megarl.cli.doctor_packages import Stack
from megarl.cli.findings import Finding, ask_process, ask_python
from megarl.cli.machine_paths import nearest_directory
from megarl.cli.visible_gpus import VISIBLE, named_gpus
from megarl.telemetry.machine_limits import available_memory, usable_cores

_GIB = 2**30
_RAY_PORT = 6379
_MIN_DISK_GIB = 10.0
_SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
_RAY_PROBE = """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
answer = ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60)
ray.shutdown()
print("a task answered", answer)
"""


def check_devices(stack: Stack, *, gpus_wanted: int | None) -> Iterator[Finding]:
    """CPU cores and memory; with the gpu stack the GPUs, as many as one node of the configuration needs."""
    total = psutil.virtual_memory().total / _GIB
    found = f"{usable_cores():g} cores, {available_memory() / _GIB:.1f} GiB memory free; the machine has {total:.1f}"
    yield Finding(name="CPU", level="ok", found=found)
    if stack == "gpu":
        query = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
        answer = ask_process([*query, "--id=0"], timeout_s=60)
        count = ask_process(["nvidia-smi", "--query-gpu=count", "--format=csv,noheader", "--id=0"], timeout_s=60)
        number = int(count.text) if count.succeeded and count.text.isdigit() else 0
        yield judge_gpus(answer.text, number, gpus_wanted, visible=os.environ.get(VISIBLE))


def judge_gpus(first: str, count: int, wanted: int | None, *, visible: str | None = None) -> Finding:
    """The GPUs that nvidia-smi sees against those one node needs; `first` is its line about GPU 0 or its error.
    visible: CUDA_VISIBLE_DEVICES, of which nvidia-smi knows nothing; None: not set."""
    name, need, found = "GPUs", wanted or 1, str(count)
    if count == 0:
        action = "install the NVIDIA driver or ask for GPUs in the job; without GPUs use the cpu extra"
        return Finding(name=name, level="failure", found=f"none: {first}", action=action)
    if visible is not None:
        there, count = count, min(count, len(named_gpus(visible)))
        found = f"{count} of {there} ({VISIBLE}={visible})"
    if count < need:
        action = "lower parallel.world_size, rollout.engines or rollout.tensor, or ask for more GPUs"
        return Finding(name=name, level="failure", found=f"{found}; the configuration needs {need}", action=action)
    return Finding(name=name, level="ok", found=f"{found}, the first: {first}")


def check_shared_memory(path: Path = Path("/dev/shm"), *, need_gib: float = 1.0) -> Finding:
    """Room for the queues of vLLM and NCCL. Weights do not pass through it."""
    name = str(path)
    if not path.is_dir():
        return Finding(name=name, level="failure", found="absent", action="mount a tmpfs there")
    free_gib = shutil.disk_usage(path).free / _GIB
    found = f"{free_gib:.1f} GiB free; {need_gib:.1f} GiB needed for queues"
    if free_gib < need_gib:
        action = f"in a container use --shm-size={need_gib + 1:.0f}g or --ipc=host"
        return Finding(name=name, level="failure", found=found, action=action)
    return Finding(name=name, level="ok", found=found)


def check_disk(
    directory: Path, *, exports_gib: float | None, checkpoints_gib: float | None, rollouts_gib: float
) -> Finding:
    """Room where run directories go. exports_gib: the run's exported weights, checkpoints_gib: as many checkpoints as
    there may be at a time, None when unknown. rollouts_gib: its rollouts, at most: if every response is as long as it
    may be."""
    existing = nearest_directory(directory)
    name, free_gib = f"disk at {directory}", shutil.disk_usage(existing).free / _GIB
    exports, checkpoints = exports_gib or 0.0, checkpoints_gib or 0.0
    needed = (
        f"{exports:.1f} GiB for exported weights, {checkpoints:.1f} GiB for checkpoints and at most "
        f"{rollouts_gib:.1f} GiB for rollouts"
    )
    if free_gib < exports + checkpoints:
        found = f"{free_gib:.1f} GiB free; the run needs {needed}"
        action = "free space, set logging.directory elsewhere, raise train.export_every, or lower checkpoint.keep_last"
        return Finding(name=name, level="failure", found=found, action=action)
    if free_gib < exports + checkpoints + rollouts_gib:
        found = f"{free_gib:.1f} GiB free; the run needs {needed}"
        action = "free space, set logging.directory elsewhere, or raise logging.rollouts_every"
        return Finding(name=name, level="warning", found=found, action=action)
    if free_gib < _MIN_DISK_GIB:
        found, action = f"{free_gib:.1f} GiB free", f"keep {_MIN_DISK_GIB:.0f} GiB for rollouts and checkpoints"
        return Finding(name=name, level="warning", found=found, action=action)
    return Finding(name=name, level="ok", found=f"{free_gib:.1f} GiB free; needed: {needed}")


def check_network(master_port: int, *, num_nodes: int) -> Iterator[Finding]:
    """The host's name resolves to an address to listen on, as gloo and NCCL need, and the policy's port is free."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        found, action = f"the host name {host} does not resolve: {error}", f"add '127.0.0.1 {host}' to /etc/hosts"
        yield Finding(name="host name", level="failure", found=found, action=action)
        return
    yield judge_address(host, address, num_nodes=num_nodes)
    if master_port:
        taken = _bind_error(address, master_port)
        action = "set policy.master_port=0 to pick a free one"
        name = f"port {master_port}"
        if taken:
            yield Finding(name=name, level="failure", found=f"policy.master_port: {taken}", action=action)
        else:
            yield Finding(name=name, level="ok", found="policy.master_port is free")


def judge_address(host: str, address: str, *, num_nodes: int) -> Finding:
    """The host's address: this machine listens on it, and other nodes can reach it where there are any."""
    name, action = "host name", f"let /etc/hosts or DNS give {host} the address of its network interface"
    refused = _bind_error(address, 0)
    if refused:
        found = f"{host} is {address}, where this machine cannot listen: {refused}"
        return Finding(name=name, level="failure", found=found, action=action)
    if num_nodes > 1 and address.startswith("127."):
        found = f"{host} is {address}, which the other of the {num_nodes} nodes cannot reach"
        return Finding(name=name, level="failure", found=found, action=action)
    return Finding(name=name, level="ok", found=f"{host} is {address}; ports can be bound")


def check_ray(ray_address: str | None, *, deep: bool, port: int = _RAY_PORT) -> Iterator[Finding]:
    """Ray's port is free, or what answers there is the cluster to join; `deep` starts a cluster of one task."""
    taken = _is_listening("127.0.0.1", port)
    name = f"port {port}"
    if ray_address:
        where = f"127.0.0.1:{port}" if ray_address == "auto" else ray_address
        host, _, text = where.rpartition(":")
        if text.isdigit() and _is_listening(host, int(text)):
            yield Finding(name="Ray cluster", level="ok", found=f"something answers at {where}")
        else:
            action = "start it with `ray start --head`, or leave cluster.ray_address unset to start one per run"
            found = f'cluster.ray_address "{ray_address}": nothing answers at {where}'
            yield Finding(name="Ray cluster", level="failure", found=found, action=action)
    elif taken:
        found = f"taken: a Ray cluster or another program listens there; RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}"
        action = "`ray status` tells which; cluster.ray_address=auto joins a cluster, `ray stop` ends it"
        yield Finding(name=name, level="warning", found=found, action=action)
    else:
        yield Finding(name=name, level="ok", found="free for a Ray head")
    if deep:
        yield _start_ray()


def check_slurm() -> Finding:
    """Which of Slurm's commands there are; none are needed on a single machine."""
    present = [command for command in _SLURM_COMMANDS if shutil.which(command)]
    job = os.environ.get("SLURM_JOB_ID")
    inside = f", inside job {job}" if job else ""
    found = f"{', '.join(present)}{inside}" if present else "none of its commands; not needed on one machine"
    return Finding(name="Slurm", level="info", found=found)


def _start_ray() -> Finding:
    answer = ask_python(_RAY_PROBE, timeout_s=180)
    if answer.succeeded:
        return Finding(name="Ray starts", level="ok", found=answer.text)
    action = "read the newest /tmp/ray/session_latest/logs/raylet.out; stale processes go with `ray stop`"
    return Finding(name="Ray starts", level="failure", found=answer.text, action=action)


def _bind_error(address: str, port: int) -> str | None:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            return str(error)
    return None


def _is_listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host or "127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False
