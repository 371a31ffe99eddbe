"""Every environment variable that megarl sets for vLLM, in one place.

They are set in the engine's own process, immediately before vLLM is imported there: vLLM and its children read them
from the environment and from nowhere else.
"""

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path

_OWNER = "MEGARL_ENGINE_OWNER_PID"
_OWNER_POLL_S = 1.0
_EXIT_GRACE_S = 10.0


def bind_threads(cpus: Iterable[int], tensor: int) -> str:
    """vLLM's CPU binding: `tensor` rank lists separated by "|", e.g. "0,1" or "0|1".

    The allowed CPUs are split evenly and contiguously; ranks share CPUs when there are fewer than ranks. vLLM's own
    "auto" gives each rank a NUMA node, and so refuses two ranks on a machine with one.
    """
    ordered = sorted(cpus)
    if not ordered:
        raise ValueError("no CPU is allowed to this process")
    share = len(ordered) // tensor
    if share == 0:
        lists = [[ordered[rank % len(ordered)]] for rank in range(tensor)]
    else:
        lists = [ordered[rank * share : (rank + 1) * share] for rank in range(tensor)]
    return "|".join(",".join(map(str, cpus_of_rank)) for cpus_of_rank in lists)


def set_engine_environment(*, tensor: int, start_timeout_s: float, logging_config: Path) -> None:
    """Set what vLLM reads from the environment. Call it in the engine's process, before importing vllm."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # the owner may hold threads and CUDA contexts
    os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(max(1, round(start_timeout_s)))
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(logging_config)
    os.environ["VLLM_RPC_BASE_PATH"] = str(logging_config.parent)  # its sockets end with that directory
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # An engine lies on one node: its processes meet where nobody else gets at them. (A publication names the address
    # it uses.)
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind_threads(os.sched_getaffinity(0), tensor))
    os.environ[_OWNER] = str(os.getpid())


def watch_owner() -> None:
    """In an engine's core process: end when the process that started it is gone, however it went.

    vLLM's workers watch their core process; the core itself would outlive a killed owner and keep its GPUs.
    """
    owner = int(os.environ.get(_OWNER, "0"))
    if owner == 0 or os.getppid() != owner:
        return  # the owner itself, a worker, or an engine that megarl did not start

    def wait() -> None:
        pause = threading.Event()
        while os.getppid() == owner:
            pause.wait(_OWNER_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM's handler ends the workers
        pause.wait(_EXIT_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if not any(thread.name == "megarl-owner-watch" for thread in threading.enumerate()):
        threading.Thread(target=wait, name="megarl-owner-watch", daemon=True).start()
