"""Files in the place of CUDA IPC: a policy rank's parameters lie in two, and a worker in another process maps them.

What is not the driver's is megarl's own: who tells what to whom, and what is read from where.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from megarl.models.table import ParameterEntry
from megarl.parallel.memory_file import MemoryFile, map_file
from megarl.reshard import mapped
from megarl.reshard.regions import parameter_key

_files: dict[int, MemoryFile] = {}
"""By the address of their memory in this process."""


def stand_in() -> None:
    """In this process CUDA IPC means these files."""
    mapped.export_cuda = _export  # type: ignore[attr-defined]
    mapped.import_cuda = _import  # type: ignore[attr-defined]


def make_parameters(entries: Iterable[ParameterEntry]) -> dict[str, Tensor]:
    """float32 parameters, every second one in the second file, each behind the one before. Those of an earlier session
    cannot be opened any more."""
    while _files:
        _files.popitem()[1].close()
    parameters: dict[str, Tensor] = {}
    for first in (0, 1):
        mine = [*entries][first::2]
        sizes = [torch.Size(entry.shape).numel() for entry in mine]
        file = MemoryFile("parameters", 4 * sum(sizes))
        _files[file.data.data_ptr()] = file
        for entry, values in zip(mine, file.data.view(torch.float32).split(sizes), strict=True):
            parameters[parameter_key(entry.chunk, entry.name)] = values.view(entry.shape)
    return parameters


def _export(data: Tensor) -> dict[str, Any]:
    file = _files[data.data_ptr()]
    assert data.numel() == file.data.numel(), "the whole of a storage is told, once"
    return {"pid": os.getpid(), "descriptor": file.descriptor, "bytes": data.numel()}


def _import(exported: dict[str, Any], dtype: torch.dtype, *, on: torch.device) -> Tensor:
    assert (dtype, on) == (torch.uint8, torch.device("cpu"))
    return map_file(f"/proc/{exported['pid']}/fd/{exported['descriptor']}", exported["bytes"])
