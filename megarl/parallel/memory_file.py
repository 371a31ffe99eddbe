"""Host memory that other processes of the host can map: a file without a name (memfd).

It needs no room in /dev/shm and goes with the last process that has it mapped, however that ends. Beside a GPU the
mapping is pinned (`parallel.pinned`).
"""

import os

import torch
from torch import Tensor

from megarl.parallel.pinned import PinnedMemory


class MemoryFile:
    """Memory of its own, `data` [bytes] uint8; others map it by `descriptor`."""

    def __init__(self, name: str, num_bytes: int) -> None:
        """name: by which the kernel lists it. Raises MemoryError, with the reason, where there is not so much memory or
        it cannot be pinned."""
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            # Reserved now: memory that is not there is an error here and not a bus error in mid-run.
            os.posix_fallocate(self.descriptor, 0, num_bytes)
            self.data = map_file(f"/proc/self/fd/{self.descriptor}", num_bytes)
            self._pinned = PinnedMemory(self.data)
        except (OSError, RuntimeError) as error:
            os.close(self.descriptor)
            raise MemoryError(str(error)) from error
        self._open = True

    def close(self) -> None:
        """Let nobody else open it; memory that is mapped stays with those who have it. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._pinned.close()
        os.close(self.descriptor)


def map_file(path: str, num_bytes: int) -> Tensor:
    """[num_bytes] uint8 of the memory behind `path`, shared with all who map it. Raises OSError or RuntimeError where
    it cannot be."""
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)
