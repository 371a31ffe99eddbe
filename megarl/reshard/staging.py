"""Where an engine worker keeps what arrives until all of it may be installed, and how others of its host reach it.

Private memory is filled by messages. Shared memory is filled by the policy's ranks on the same host, which pack
straight into it: host memory is a `MemoryFile`, a GPU's is opened by CUDA IPC. Beside a GPU both sides' mappings of
host memory are pinned (`parallel.pinned`).
"""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.parallel.memory_file import MemoryFile, map_file
from megarl.parallel.pinned import PinnedMemory, PinningError
from megarl.reshard.cuda_ipc import export_cuda, import_cuda
from megarl.reshard.signals import TransportError


def node_name() -> str:
    """The same for all processes of a machine, and for no other's."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}-{boot}"


def make_private(num_elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[num_elements] on `device`; host memory beside a GPU is pinned."""
    if device.type == "cuda":
        return torch.empty(num_elements, dtype=dtype, device=device)
    return torch.empty(num_elements, dtype=dtype, pin_memory=torch.cuda.is_available())


class SharedMemory:
    """A worker's own: `data`, [elements], and the `address` by which others of the host open it."""

    def __init__(self, num_elements: int, dtype: torch.dtype, device: torch.device) -> None:
        """Raises TransportError where there is not enough memory, or it cannot be pinned."""
        self._file: MemoryFile | None = None
        if device.type == "cuda":
            self.data = torch.empty(num_elements, dtype=dtype, device=device)
            self.address: dict[str, Any] = {"node": node_name(), "cuda": export_cuda(self.data)}
            return
        num_bytes = num_elements * dtype.itemsize
        try:
            self._file = MemoryFile("megarl-weights", num_bytes)
        except MemoryError as error:
            raise TransportError(
                f"no memory for the {num_bytes / 2**20:.0f} MiB that an engine worker receives ({error}); free host "
                "memory or give the engines more tensor ranks"
            ) from error
        self.data = self._file.data.view(dtype)
        place = {"pid": os.getpid(), "descriptor": self._file.descriptor, "bytes": num_bytes}
        self.address = {"node": node_name(), **place}

    def close(self) -> None:
        """Let nobody else open it; memory that is mapped stays with those who have it. Idempotent."""
        if self._file is not None:
            self._file.close()


class OpenedMemory:
    """Another process's `SharedMemory`: `data`, [elements]."""

    def __init__(self, address: dict[str, Any], dtype: torch.dtype, *, owner: str) -> None:
        """owner: for messages. Raises TransportError when it cannot be reached from here."""
        if address["node"] != node_name():
            raise TransportError(
                f'{owner} is on another host: rollout.publish.transport = "shared_memory" needs policy and engines on '
                'one; set it to "network"'
            )
        self._pinned: PinnedMemory | None = None
        if "cuda" in address:
            self.data = import_cuda(address["cuda"], dtype)
            return
        path = f"/proc/{address['pid']}/fd/{address['descriptor']}"
        try:
            self.data = map_file(path, address["bytes"]).view(dtype)
        except (OSError, RuntimeError) as error:
            raise TransportError(
                f"the memory of {owner} cannot be opened at {path} ({error}): both must run as one user and see each "
                'other\'s processes; otherwise set rollout.publish.transport = "network"'
            ) from error
        try:
            self._pinned = PinnedMemory(self.data)
        except PinningError as error:
            raise TransportError(f"the memory of {owner}: {error}") from error

    def close(self) -> None:
        """Let it go. Idempotent."""
        if self._pinned is not None:
            self._pinned.close()
        self.data, self._pinned = torch.empty(0), None
