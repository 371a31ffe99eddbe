"""Packing named tensors into byte buckets and back.

A bucket holds whole tensors. Its entries say where each lies, what it is and the checksum of its source. Offsets are
multiples of `ALIGNMENT`, so every view of the buffer is aligned for its dtype. A tensor larger than `bucket_bytes`
gets a bucket of its own. At most the buffers that `buffer_for` hands out are in memory beside the source tensor being
packed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megarl.reshard.checksum import as_bytes, compute_checksum

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """First byte in the bucket's buffer."""
    checksum: int
    """Of the source tensor, before it was packed."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def as_json(self) -> list[Any]:
        return [self.name, str(self.dtype).removeprefix("torch."), list(self.shape), self.offset, self.checksum]

    @classmethod
    def from_json(cls, fields: list[Any]) -> "TensorEntry":
        name, dtype, shape, offset, checksum = fields
        return cls(name, getattr(torch, dtype), tuple(shape), offset, checksum)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Entries and the buffer that holds their bytes."""

    index: int
    buffer: Tensor
    """[capacity] uint8; only the first `num_bytes` are meant."""
    entries: tuple[TensorEntry, ...]

    @property
    def num_bytes(self) -> int:
        last = self.entries[-1]
        return last.offset + last.num_bytes

    @property
    def names(self) -> str:
        """For messages: the one tensor, or the first and the last."""
        first, last = self.entries[0].name, self.entries[-1].name
        return first if len(self.entries) == 1 else f"{first} .. {last}"


BufferFor = Callable[[int, int], Tensor]
"""(bucket index, least bytes) -> uint8 buffer to pack that bucket into; may wait until an older bucket has left it."""


def private_buffers(_index: int, num_bytes: int) -> Tensor:
    """A fresh buffer for every bucket: buckets stay valid as long as they are referenced."""
    return torch.empty(num_bytes, dtype=torch.uint8)


def pack_buckets(
    tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int, buffer_for: BufferFor = private_buffers
) -> Iterator[Bucket]:
    """Pack `tensors` in their order into buckets of at most `bucket_bytes` (one tensor, if larger).

    `tensors` is consumed one at a time, and each is copied before the next is asked for, so an iterator that gathers
    shards on demand never has two full tensors alive.

    Raises:
        ValueError: a name comes twice, or a tensor is on the meta device.
    """
    seen: set[str] = set()
    entries: list[TensorEntry] = []
    buffer: Tensor | None = None
    index = end = 0
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"tensor {name} came twice in one publication; every name must come exactly once")
        if tensor.is_meta:
            raise ValueError(f"tensor {name} is on the meta device: it has no values to publish")
        seen.add(name)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if buffer is not None and offset + tensor.nbytes > bucket_bytes:
            yield Bucket(index, buffer, tuple(entries))
            entries, buffer, index, offset = [], None, index + 1, 0
        if buffer is None:
            buffer = buffer_for(index, max(bucket_bytes, tensor.nbytes))
        entries.append(TensorEntry(name, tensor.dtype, tuple(tensor.shape), offset, compute_checksum(tensor)))
        end = offset + tensor.nbytes
        buffer[offset:end].copy_(as_bytes(tensor))
    if buffer is not None:
        yield Bucket(index, buffer, tuple(entries))


def unpack_tensor(buffer: Tensor, entry: TensorEntry) -> Tensor:
    """The entry's tensor as a view of `buffer`."""
    return buffer[entry.offset : entry.offset + entry.num_bytes].view(entry.dtype).view(entry.shape)
