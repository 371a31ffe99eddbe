"""Where a rank's state lies while it is written: memory that the rank fills and its writer process reads.

It is made for the first save and kept for the next ones, because fresh pages cost as much time as the copy.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from megarl.checkpoint.errors import CheckpointError
from megarl.parallel.memory_file import MemoryFile, map_file
from megarl.telemetry.machine_limits import available_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of a rank's state."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class StatePiece:
    """A rectangle of a tensor of the checkpoint, and the memory of a rank that holds it."""

    key: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    tensor: Tensor
    """A view, of the rectangle's sizes."""


@dataclass(frozen=True, slots=True)
class StagedPiece:
    """The same in staging memory, as the writer process is told of it."""

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    start: int
    """First byte."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.sizes) * DTYPES[self.dtype].itemsize

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        lists = {name: tuple(fields[name]) for name in ("shape", "offsets", "sizes")}
        return cls(**(fields | lists))


def plan_staging(pieces: Iterable[StatePiece]) -> tuple[list[StagedPiece], int]:
    """(a place for each piece, in order; bytes in all)."""
    staged, end = [], 0
    for piece in pieces:
        name = _NAMES[piece.tensor.dtype]
        staged.append(StagedPiece(piece.key, piece.shape, piece.offsets, tuple(piece.tensor.shape), name, end))
        end += -(-piece.tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return staged, end


class StagingMemory:
    """Memory of `num_bytes` that a child process can open by `descriptor`."""

    def __init__(self, num_bytes: int) -> None:
        """Raises CheckpointError where there is not so much memory."""
        self.num_bytes = num_bytes
        available = available_memory()
        if num_bytes > available:  # the kernel would end some process instead
            raise _no_memory(num_bytes, f"{available / 2**20:.0f} MiB are available")
        try:
            self._file = MemoryFile("megarl-checkpoint", num_bytes)
        except MemoryError as error:
            raise _no_memory(num_bytes, str(error)) from error

    @property
    def descriptor(self) -> int:
        return self._file.descriptor

    def fill(self, pieces: Sequence[StatePiece], staged: Sequence[StagedPiece]) -> None:
        """Copy every piece to its place; it is there when this returns."""
        for piece, place in zip(pieces, staged, strict=True):
            view_staged(self._file.data, place).copy_(piece.tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def close(self) -> None:
        """Give the memory back, once the writer process has ended too."""
        self._file.close()
        del self._file


def _no_memory(num_bytes: int, why: str) -> CheckpointError:
    return CheckpointError(
        f"no host memory for the {num_bytes / 2**20:.0f} MiB that a policy rank copies before it goes on ({why}); free "
        "memory, or spread the policy over more ranks"
    )


def map_memory(descriptor: int, num_bytes: int) -> Tensor:
    """[num_bytes] of the memory behind an open descriptor."""
    return map_file(f"/proc/self/fd/{descriptor}", num_bytes)


def view_staged(memory: Tensor, piece: StagedPiece) -> Tensor:
    """The piece as a tensor of its sizes, in staging memory."""
    return memory[piece.start : piece.start + piece.num_bytes].view(DTYPES[piece.dtype]).view(piece.sizes)
