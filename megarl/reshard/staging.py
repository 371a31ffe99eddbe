"""Where an engine worker keeps what arrives until all of it may be installed, and how others of its host reach it.

Private memory is filled by messages. Shared memory is filled by the policy's ranks on the same host, which pack
straight into it: host memory is a file without a name (memfd), which needs no room in /dev/shm and goes with the last
process that has it mapped, however that ends; a GPU's is opened by CUDA IPC.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.reshard.signals import TransportError

CUDA_FIELDS = (
    "tensor_cls",
    "tensor_size",
    "tensor_stride",
    "tensor_offset",
    "storage_cls",
    "dtype",
    "storage_device",
    "storage_handle",
    "storage_size_bytes",
    "storage_offset_bytes",
    "requires_grad",
    "ref_counter_handle",
    "ref_counter_offset",
    "event_handle",
    "event_sync_required",
)
"""What torch.multiprocessing.reductions.rebuild_cuda_tensor is called with, in its order."""

_BYTES = ("storage_handle", "ref_counter_handle", "event_handle")
_NUMBERS = ("storage_size_bytes", "storage_offset_bytes", "ref_counter_offset", "tensor_offset")


def node_name() -> str:
    """The same for all processes of a machine, and for no other's."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}-{boot}"


def make_private(num_elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[num_elements] on `device`; host memory beside a GPU is pinned."""
    if device.type == "cuda":
        return torch.empty(num_elements, dtype=dtype, device=device)
    return torch.empty(num_elements, dtype=dtype, pin_memory=torch.cuda.is_available())


def make_shared(num_elements: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """([num_elements] on `device`, what another process of the host needs to open it).

    Raises:
        TransportError: there is not enough memory.
    """
    if device.type == "cuda":
        data = torch.empty(num_elements, dtype=dtype, device=device)
        return data, {"node": node_name(), "cuda": _export_cuda(data)}
    num_bytes = num_elements * dtype.itemsize
    descriptor = os.memfd_create("megarl-weights", os.MFD_CLOEXEC)
    try:
        # Reserved now: memory that is not there is an error here and not a bus error in mid-run.
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        os.close(descriptor)
        raise TransportError(
            f"no memory for the {num_bytes / 2**20:.0f} MiB that an engine worker receives ({error}); free host "
            "memory or give the engines more tensor ranks"
        ) from error
    data = _map(f"/proc/self/fd/{descriptor}", num_bytes).view(dtype)
    return data, {"node": node_name(), "pid": os.getpid(), "descriptor": descriptor, "bytes": num_bytes}


def close_shared(address: dict[str, Any]) -> None:
    """The owner: let nobody else open it; memory that is mapped stays with those who have it."""
    if "descriptor" in address:
        os.close(address["descriptor"])


def open_shared(address: dict[str, Any], dtype: torch.dtype, *, owner: str) -> Tensor:
    """The owner's memory, [elements]. Raises TransportError when it cannot be reached from here."""
    if address["node"] != node_name():
        raise TransportError(
            f'{owner} is on another host: rollout.publish.transport = "shared_memory" needs policy and engines on '
            'one; set it to "network"'
        )
    if "cuda" in address:
        return _import_cuda(address["cuda"], dtype)
    path = f"/proc/{address['pid']}/fd/{address['descriptor']}"
    try:
        data = _map(path, address["bytes"]).view(dtype)
    except (OSError, RuntimeError) as error:
        raise TransportError(
            f"the memory of {owner} cannot be opened at {path} ({error}): both must run as one user and see each "
            'other\'s processes; otherwise set rollout.publish.transport = "network"'
        ) from error
    if torch.cuda.is_available():
        # Copies from a GPU run at full speed only into memory the driver knows.
        torch.cuda.cudart().cudaHostRegister(data.data_ptr(), data.nbytes, 0)
    return data


def _map(path: str, num_bytes: int) -> Tensor:
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


def _device_id(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def _export_cuda(data: Tensor) -> dict[str, Any]:
    """A CUDA IPC handle; device numbers differ between processes, so the GPU goes by its UUID."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(data)
    return {"uuid": _device_id(data.device.index), "handle": encode_handle(arguments)}


def _import_cuda(exported: dict[str, Any], dtype: torch.dtype) -> Tensor:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    indexes = [index for index in range(torch.cuda.device_count()) if _device_id(index) == exported["uuid"]]
    if not indexes:
        raise TransportError(
            "the engine's GPU is not visible to this policy rank: CUDA IPC needs both GPUs in CUDA_VISIBLE_DEVICES of "
            'both; set rollout.publish.staging = "host"'
        )
    return rebuild_cuda_tensor(**decode_handle(exported["handle"], dtype, device=indexes[0]))


def encode_handle(arguments: Sequence[Any]) -> dict[str, Any]:
    """torch's handle of a contiguous vector on a GPU as numbers and hexadecimal text, by the names of `CUDA_FIELDS`.

    What is the same for every such vector (classes, no gradient) is left out, and never comes from a message.
    """
    fields = dict(zip(CUDA_FIELDS, arguments, strict=True))
    found = fields["tensor_cls"], fields["storage_cls"], tuple(fields["tensor_stride"]), fields["requires_grad"]
    if found != (torch.Tensor, torch.storage.TypedStorage, (1,), False):
        raise TypeError(f"expected the handle of a contiguous vector of torch.Tensor, found {found}")
    return {
        "num_elements": int(fields["tensor_size"][0]),
        "event_sync_required": bool(fields["event_sync_required"]),
        **{name: int(fields[name]) for name in _NUMBERS},
        **{name: fields[name].hex() for name in _BYTES},
    }


def decode_handle(encoded: dict[str, Any], dtype: torch.dtype, *, device: int) -> dict[str, Any]:
    """The arguments of rebuild_cuda_tensor, by name. Raises TransportError for what `encode_handle` does not write."""
    kinds = (
        {"num_elements": int, "event_sync_required": bool} | dict.fromkeys(_NUMBERS, int) | dict.fromkeys(_BYTES, str)
    )
    if {name: type(value) for name, value in encoded.items()} != kinds:
        raise TransportError(f"a CUDA IPC handle has the fields {sorted(kinds)}, found {sorted(encoded)}")
    return {
        "tensor_cls": torch.Tensor,
        "tensor_size": (encoded["num_elements"],),
        "tensor_stride": (1,),
        "storage_cls": torch.storage.TypedStorage,
        "dtype": dtype,
        "storage_device": device,
        "requires_grad": False,
        "event_sync_required": encoded["event_sync_required"],
        **{name: encoded[name] for name in _NUMBERS},
        **{name: bytes.fromhex(encoded[name]) for name in _BYTES},
    }
