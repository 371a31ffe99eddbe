"""Which failures another start of the run may get past."""

import errno
from typing import Any

import pytest
import ray.exceptions
import torch

from megarl.config.base import ConfigError
from megarl.controller.sampling import SamplingExhaustedError
from megarl.policy.offload import OffloadError
from megarl.policy.reports import NonFiniteLossError
from megarl.reshard.signals import TransportError
from megarl.rewards.item import RewardError
from megarl.rollout.failures import EngineError, EngineLost, ResidualMemoryError
from megarl.runtime.failures import EngineBroken, WorkerDied, WorkerFailed, WorkerStuck, is_machine_fault


def from_worker(cause: Any) -> WorkerFailed:
    """As `call` raises what a worker has raised."""
    error = WorkerFailed("policy rank 0 raised something")
    error.__cause__ = ray.exceptions.RayTaskError("f", "traceback", cause)
    return error


@pytest.mark.parametrize(
    "error",
    [
        WorkerDied("policy rank 1 died"),
        WorkerStuck("policy rank 1 did not make an update within 60 s"),
        EngineLost("rollout rank 0 died while weights were published"),
        EngineBroken("rollout rank 0 raised EngineError. It had been started again 3 times"),
        TransportError("rank 1 is gone"),
        from_worker(RuntimeError("NCCL error: unhandled system error")),
        from_worker(torch.OutOfMemoryError("CUDA out of memory")),
        from_worker(torch.distributed.DistNetworkError("connection reset")),
        from_worker(EngineError("engine 0 cannot go on")),
        from_worker(ConnectionResetError()),
        from_worker(TimeoutError()),
        from_worker(OSError(errno.EIO, "Input/output error")),
        from_worker(type("NotPickled", (RuntimeError,), {})("local class")),
        ray.exceptions.RaySystemError("the control service does not answer"),
        ResidualMemoryError("engine 0 sleeps and keeps 13.0 GiB"),
        from_worker(OffloadError("no host memory for 10 GiB of optimizer")),
    ],
)
def test_of_a_machine(error: BaseException) -> None:
    assert is_machine_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("no such field"),
        SamplingExhaustedError("no prompt is left"),
        RewardError("the reward function raised"),
        RuntimeError("the driver broke"),
        OSError(errno.ENOSPC, "No space left on device"),
        ray.exceptions.RayTaskError("f", "traceback", ValueError("not from a call")),
        from_worker(NonFiniteLossError("the loss is nan")),
        from_worker(NotImplementedError("no such kernel")),
        from_worker(RecursionError()),
        from_worker(TypeError("f() takes no arguments")),
        from_worker(ValueError("expected another shape")),
        from_worker(OSError(errno.ENOSPC, "No space left on device")),
        from_worker(FileNotFoundError(errno.ENOENT, "No such file")),
    ],
)
def test_what_would_repeat_itself(error: BaseException) -> None:
    assert not is_machine_fault(error)
