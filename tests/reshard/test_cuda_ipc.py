"""How a GPU's memory is told to another process: plain fields, without a GPU; the handle itself needs one."""

import inspect
import json
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from megarl.reshard.cuda_ipc import CUDA_FIELDS, decode_handle, encode_handle
from megarl.reshard.signals import TransportError

HANDLE = {
    "tensor_cls": torch.Tensor,
    "tensor_size": torch.Size([5]),
    "tensor_stride": (1,),
    "tensor_offset": 2,
    "storage_cls": torch.storage.TypedStorage,
    "dtype": torch.bfloat16,
    "storage_device": 3,
    "storage_handle": b"\x01\xffhandle",
    "storage_size_bytes": 1 << 40,
    "storage_offset_bytes": 512,
    "requires_grad": False,
    "ref_counter_handle": b"counter\x00",
    "ref_counter_offset": 7,
    "event_handle": b"event",
    "event_sync_required": True,
}
"""In the order of CUDA_FIELDS."""


def test_the_installed_torch_takes_these_fields() -> None:
    assert tuple(inspect.signature(rebuild_cuda_tensor).parameters) == CUDA_FIELDS


def test_a_handle_there_and_back_as_json() -> None:
    encoded = encode_handle(list(HANDLE.values()))
    assert all(type(value) in (int, bool, str) for value in encoded.values())
    decoded = decode_handle(json.loads(json.dumps(encoded)), torch.bfloat16, device=6)
    assert decoded == HANDLE | {"storage_device": 6, "tensor_size": (5,)}


@pytest.mark.parametrize(
    "change",
    [
        {"tensor_cls": "builtins.exec"},
        {"num_elements": "5"},
        {"num_elements": True},
        {"event_handle": None},
        {"storage_offset_bytes": 1.0},
    ],
)
def test_other_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TransportError, match="a CUDA IPC handle has the fields"):
        decode_handle(encode_handle(list(HANDLE.values())) | change, torch.bfloat16, device=0)


def test_other_tensors_are_not_told() -> None:
    for change in ({"tensor_stride": (2,)}, {"requires_grad": True}, {"tensor_cls": torch.nn.Parameter}):
        with pytest.raises(TypeError, match="a contiguous vector"):
            encode_handle(list((HANDLE | change).values()))
