"""Host memory that the CUDA driver knows: copies between it and a GPU run at full speed, and beside other work.

A mapping is registered once and unregistered before it goes: pages that are unmapped while they are registered stay so
for the driver. The next mapping at their address is then refused, and the refusal is raised by whatever runs next on
the GPU.
"""

import weakref
from contextlib import suppress

import torch
from torch import Tensor


class PinningError(RuntimeError):
    """The driver refused; nothing else is wrong with the memory."""


class PinnedMemory:
    """Registration of a contiguous tensor in host memory, which it keeps alive. Does nothing without CUDA."""

    def __init__(self, memory: Tensor) -> None:
        """Raises PinningError, with the driver's own words."""
        self.memory = memory
        self._end = None
        if torch.cuda.is_available() and memory.nbytes:
            _register(memory)
            # Also where nobody closes it, because something failed on the way: before the memory itself goes.
            self._end = weakref.finalize(self, _unregister, memory.data_ptr())
            self._end.atexit = False  # the process's end takes the registration with it

    def close(self) -> None:
        """Unregister it. Idempotent."""
        if self._end is not None:
            self._end()


def _register(memory: Tensor) -> None:
    code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(code) == 0:
        return
    # The refusal is raised once more by the next launch: by this one, which nobody needs.
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    words = torch.cuda.cudart().cudaGetErrorString(code)
    raise PinningError(
        f"CUDA does not take {memory.nbytes / 2**20:.0f} MiB of host memory for fast copies: {words} (error "
        f"{int(code)}); where it is out of memory, raise the limit of locked memory (ulimit -l) or free host memory"
    )


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
