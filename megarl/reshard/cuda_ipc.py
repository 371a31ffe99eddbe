"""A GPU's memory told to another process of the host: CUDA IPC handles as plain fields.

What comes from a peer is numbers and text; no object of torch is ever unpickled.
"""

from collections.abc import Sequence
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


def _device_id(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def export_cuda(data: Tensor) -> dict[str, Any]:
    """A CUDA IPC handle; device numbers differ between processes, so the GPU goes by its UUID."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(data)
    return {"uuid": _device_id(data.device.index), "handle": encode_handle(arguments)}


def import_cuda(exported: dict[str, Any], dtype: torch.dtype, *, on: torch.device | None = None) -> Tensor:
    """The tensor behind such a handle, as memory of its GPU; or of the GPU `on`, which then reaches it as a peer, and
    waits for nothing that its own GPU was still asked for. Raises TransportError where that cannot be."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    indexes = [index for index in range(torch.cuda.device_count()) if _device_id(index) == exported["uuid"]]
    if not indexes:
        raise TransportError(
            "a peer's GPU is not visible to this process: CUDA IPC needs both GPUs in CUDA_VISIBLE_DEVICES of both; "
            'set rollout.publish.staging = "host"'
        )
    fields = decode_handle(exported["handle"], dtype, device=indexes[0])
    if on is not None:
        fields |= {"storage_device": on.index or 0, "event_sync_required": False}
    try:
        return rebuild_cuda_tensor(**fields)
    except RuntimeError as error:
        raise TransportError(
            f"the memory of a peer's GPU cannot be opened: {str(error).splitlines()[0]}; policy and engines must see "
            "each other's GPUs, and reach them as peers (nvidia-smi topo -p2p r); else set rollout.publish.staging = "
            '"host"'
        ) from error


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
