"""The machine: CUDA with NCCL (or gloo, where it was chosen), or CPU with gloo. Decided here and nowhere else.

Megatron-core calls `torch.cuda` unconditionally. Where there is no CUDA device `adapt_process_to_cpu` makes those calls
mean the CPU, for one process: a device named "cuda" is the CPU, streams and synchronisation do nothing, the CUDA random
state is the CPU generator's. It is called by a policy worker as its first act; importing this module changes nothing.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


def cuda_present() -> bool:
    """Whether this process computes on CUDA."""
    return torch.cuda.is_available()


def built_for_cuda() -> bool:
    """Whether this installation can compute on CUDA at all; a driver without a GPU asks this of its workers."""
    return torch.version.cuda is not None


def collective_backend(chosen: Literal["auto", "nccl", "gloo"] = "auto") -> Literal["nccl", "gloo"]:
    """torch.distributed backend of the policy's groups. ValueError for nccl without CUDA."""
    if chosen == "nccl" and not cuda_present():
        raise ValueError("policy.backend is nccl, and this process sees no GPU; use auto or gloo")
    if chosen == "auto":
        return "nccl" if cuda_present() else "gloo"
    return chosen


def multiplies_bfloat16() -> bool:
    """Whether torch has kernels for products of bfloat16 matrices on this CPU: oneDNN's, from AVX-512 on. Elsewhere it
    multiplies number by number, at a tenth of float32's speed."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compute_device(local_rank: int = 0) -> torch.device:
    """Device of a worker; `local_rank` counts the workers' visible GPUs."""
    return torch.device("cuda", local_rank) if cuda_present() else torch.device("cpu")


def prepare_process(local_rank: int = 0) -> torch.device:
    """First act of a policy worker: pick the device, adapt to the CPU where there is no CUDA.

    On the CPU one thread per rank: ranks share the cores, and more threads than cores make gloo's waits slow.
    """
    device = compute_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        adapt_process_to_cpu()
    return device


def _is_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _CudaMeansCpu(TorchFunctionMode):
    """Sends every torch call that names a CUDA device to the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's distributed optimizer recognises its parameters by "torch.cuda.*Tensor".
            return _CUDA_TYPE_NAMES.get(args[0].dtype) or func(*args)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.to and any(_is_cuda(arg) for arg in args):
            args = tuple("cpu" if _is_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)


class _NoStream:
    """Stands for a CUDA stream: the CPU executes in program order."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def wait_event(self, *_: object) -> None: ...

    def record_event(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...


class _CpuGenerators:
    """Stands for torch.cuda.default_generators: every index is the CPU generator."""

    def __getitem__(self, _: object) -> torch.Generator:
        return torch.default_generator


@contextlib.contextmanager
def _no_stream_context(*_: object) -> Iterator[None]:
    yield


_function_mode: _CudaMeansCpu | None = None


def adapt_process_to_cpu() -> None:
    """Make Megatron-core's `torch.cuda` calls mean the CPU in this process and thread; idempotent.

    Raises RuntimeError where a CUDA device exists: then the calls must mean what they say.
    """
    global _function_mode  # noqa: PLW0603  (one switch per process, by design)
    if cuda_present():
        raise RuntimeError("a CUDA device is present; the CPU adaptation must not be applied")
    if _function_mode is not None:
        return
    replacements: dict[str, object] = {
        "current_device": lambda: torch.device("cpu"),
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "Stream": _NoStream,
        "stream": _no_stream_context,
        "current_stream": lambda *_: _NoStream(),
        "default_stream": lambda *_: _NoStream(),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "default_generators": _CpuGenerators(),
        # Megatron defers random-state writes until CUDA is up (`torch.cuda._lazy_call`); here they must happen now.
        "is_initialized": lambda: True,
    }
    for name, value in replacements.items():
        setattr(torch.cuda, name, value)
    torch.cuda.random.get_rng_state = replacements["get_rng_state"]  # type: ignore[assignment]
    _function_mode = _CudaMeansCpu()
    _function_mode.__enter__()
