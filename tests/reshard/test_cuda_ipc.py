"""How a GPU's memory is told to another process: plain fields, without a GPU; the handle itself needs one."""

import inspect
import json
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from megarl.reshard import cuda_ipc
from megarl.reshard.cuda_ipc import CUDA_FIELDS, decode_handle, encode_handle, import_cuda
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


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """This process sees two; what torch is asked to rebuild."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(cuda_ipc, "_device_id", lambda index: f"GPU-{index}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", lambda **fields: asked.append(fields))
    return asked


def exported(gpu: str) -> dict[str, Any]:
    return {"uuid": gpu, "handle": encode_handle(list(HANDLE.values()))}


def test_memory_is_opened_on_its_own_gpu_or_as_a_peers(two_gpus: list[dict[str, Any]]) -> None:
    """As a peer's nothing is made on the other GPU, and its event, which lies there, is not waited for."""
    import_cuda(exported("GPU-1"), torch.uint8)
    import_cuda(exported("GPU-1"), torch.uint8, on=torch.device("cuda", 0))
    import_cuda(exported("GPU-0"), torch.uint8, on=torch.device("cuda"))
    found = [(fields["storage_device"], fields["event_sync_required"]) for fields in two_gpus]
    assert found == [(1, True), (0, False), (0, False)]
    assert all(fields["dtype"] == torch.uint8 for fields in two_gpus)


def test_memory_that_cannot_be_opened(two_gpus: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransportError, match="a peer's GPU is not visible to this process"):
        import_cuda(exported("GPU-2"), torch.uint8)
    assert two_gpus == []

    def refuse(**_: Any) -> None:
        raise RuntimeError("CUDA error: peer access is not supported between these two devices\nmore")

    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", refuse)
    with pytest.raises(TransportError, match=r"cannot be opened: CUDA error: peer access .* two devices; policy and"):
        import_cuda(exported("GPU-1"), torch.uint8)
