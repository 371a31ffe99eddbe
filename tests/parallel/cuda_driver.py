"""A stand-in for the CUDA runtime's registration of host memory, as strict as the real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

ALREADY_REGISTERED, NOT_REGISTERED, OUT_OF_MEMORY = 712, 713, 2


class Driver:
    """What is registered; a refusal stays pending, and the next launch raises it."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        """Address -> bytes."""
        self.limit = 1 << 62
        self.pending: int | None = None

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        assert flags == 0
        if any(address < start + size and start < address + num_bytes for start, size in self.registered.items()):
            return self._refuse(ALREADY_REGISTERED)
        if sum(self.registered.values()) + num_bytes > self.limit:
            return self._refuse(OUT_OF_MEMORY)
        self.registered[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.registered.pop(address, None) else self._refuse(NOT_REGISTERED)

    def cudaGetErrorString(self, code: int) -> str:
        return {OUT_OF_MEMORY: "out of memory"}.get(code, "part or all of the memory range is already mapped")

    def launch(self) -> None:
        """RuntimeError where something before it was refused."""
        code, self.pending = self.pending, None
        if code is not None:
            raise RuntimeError(f"CUDA error: {self.cudaGetErrorString(code)}")

    def _refuse(self, code: int) -> int:
        self.pending = code
        return code


@contextmanager
def cuda_stand_in() -> Iterator[Driver]:
    """torch in this process takes a CPU for CUDA, as far as registration goes."""
    driver = Driver()
    zeros = torch.zeros

    def launched_zeros(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.pop("device", "cpu")).startswith("cuda"):
            driver.launch()
        return zeros(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "cudart", lambda: driver)
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        patch.setattr(torch, "zeros", launched_zeros)
        yield driver
