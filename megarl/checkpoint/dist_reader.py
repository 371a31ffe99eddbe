"""Reading a torch.distributed.checkpoint box by box, in one process and without a process group.

Memory is bounded by what is asked for: of a chunk only the wanted rows are read. Invariant: what `read` returns was
covered by the checkpoint's chunks, each element by exactly one.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from megarl.checkpoint.coverage import coverage_fault
from megarl.checkpoint.dist_chunk import FileSection, TensorPlace, check_crc, load_tensor, locate_tensor, read_box
from megarl.checkpoint.dist_format import Chunk, Contents, StoredObject, StoredTensor, read_contents
from megarl.checkpoint.errors import CheckpointError, is_out_of_memory, list_faults

_OPEN_FILES = 32
"""A checkpoint has several files a rank; a process may not have that many open."""


def open_dist_checkpoint(path: str | Path, *, verify: bool = False) -> "DistCheckpoint":
    """Open the checkpoint in directory `path`; reads its `.metadata` and looks at its files.

    verify: each chunk's bytes are compared with their CRC-32 before the first of them is used.
    Raises CheckpointError where it is none, or files are missing or shorter than `.metadata` says: all of them are
    named, with a tensor that lies there.
    """
    directory = Path(path)
    contents = read_contents(directory)
    faults = list(_file_faults(directory, contents))
    if faults:
        raise CheckpointError(
            f"{directory} is incomplete:\n  {list_faults(faults)}\nCopy these files again, or use another checkpoint"
        )
    return DistCheckpoint(directory, contents, verify=verify)


class DistCheckpoint:
    """An open checkpoint. Files are opened as they are read and closed by `close` or the end of a `with` block."""

    def __init__(self, directory: Path, contents: Contents, *, verify: bool) -> None:
        self.directory = directory
        self._contents = contents
        self._verify = verify
        self._indices: dict[str, _Index] = {}
        self._places: dict[Chunk, TensorPlace | None] = {}
        self._files: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By key: shape, dtype and chunks."""
        return self._contents.tensors

    @property
    def objects(self) -> Mapping[str, StoredObject]:
        """What is no tensor, by key."""
        return self._contents.objects

    def check_coverage(self, keys: Iterable[str]) -> None:
        """CheckpointError where the chunks of a tensor do not cover it exactly once; names all such tensors."""
        faults = []
        for key in keys:
            tensor = self.tensors[key]
            fault = coverage_fault(tensor.shape, [(chunk.offsets, chunk.sizes) for chunk in tensor.chunks])
            if fault is not None:
                faults.append(f"{key} {list(tensor.shape)}: {fault}")
        if faults:
            raise CheckpointError(
                f"{self.directory} has tensors whose chunks do not fit together:\n  {list_faults(faults)}\n"
                "Not every rank has saved; use another checkpoint"
            )

    def read(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...], *, out: Tensor | None = None) -> Tensor:
        """[*sizes] on the CPU: the elements of `key` from `offsets` on, in the stored dtype; into `out` where given.

        Raises CheckpointError where the checkpoint has them not, or a file is damaged: it names file and tensor.
        """
        tensor = self._tensor(key)
        ends = zip(offsets, sizes, tensor.shape, strict=False)
        if not len(offsets) == len(sizes) == len(tensor.shape) or any(a + b > end for a, b, end in ends):
            raise CheckpointError(
                f"{self.directory}: {list(sizes)} at {list(offsets)} lies outside {key} {list(tensor.shape)}"
            )
        result = torch.empty(sizes, dtype=tensor.dtype) if out is None else out
        if (tuple(result.shape), result.dtype) != (sizes, tensor.dtype):
            raise ValueError(f"{key}: expected {tensor.dtype} {sizes} to fill, found {result.dtype} {result.shape}")
        index = self._indices.get(key)
        if index is None:
            self.check_coverage([key])
            index = self._indices[key] = _Index.of(tensor)
        for part in index.overlaps(offsets, sizes):
            self._read_part(key, part, result[part.target], tensor.dtype)
        return result

    def read_object(self, key: str) -> bytes:
        """What torch.save made of the list that has the object; it is not unpickled here."""
        stored = self.objects[key]
        section = FileSection(self._open(stored.file), stored.offset, stored.length)
        content = section.read(stored.length)
        if content is None or len(content) != stored.length:
            raise CheckpointError(f"{self.directory / stored.file}: {key} is truncated; copy the file again")
        return content

    def _tensor(self, key: str) -> StoredTensor:
        if key not in self.tensors:
            raise CheckpointError(f"{self.directory} has no tensor {key}; use a checkpoint of this model")
        return self.tensors[key]

    def _read_part(self, key: str, part: "_Part", out: Tensor, dtype: torch.dtype) -> None:
        chunk = part.chunk
        descriptor = self._open(chunk.file)
        section = FileSection(descriptor, chunk.offset, chunk.length)
        try:
            if chunk not in self._places:
                place = locate_tensor(section, offset=chunk.offset, sizes=chunk.sizes, dtype=dtype)
                if place is not None and self._verify:
                    check_crc(descriptor, place)
                self._places[chunk] = place
            place = self._places[chunk]
            if place is None:
                out.copy_(load_tensor(section).reshape(chunk.sizes)[part.source])
            else:
                read_box(descriptor, place, out, shape=chunk.sizes, start=part.start)
        except Exception as error:  # a damaged archive raises almost anything
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{self.directory / chunk.file}: {key} at {list(chunk.offsets)} is damaged: {error}; copy the file "
                "again, or use another checkpoint"
            ) from error

    def _open(self, file: str) -> int:
        if file in self._files:
            self._files.move_to_end(file)
            return self._files[file]
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[file] = os.open(self.directory / file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(
                f"{self.directory / file} cannot be opened: {error.strerror}; was the checkpoint moved or removed "
                "meanwhile (a run removes what checkpoint.keep_last does not keep)?"
            ) from error
        return self._files[file]


@dataclass(frozen=True, slots=True)
class _Part:
    """What a chunk has of a box: it begins at `start` of the chunk and is `target` of the box."""

    chunk: Chunk
    start: tuple[int, ...]
    source: tuple[slice, ...]
    target: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Index:
    """The chunks of a tensor, to find those that overlap a box: a tensor has up to a million."""

    chunks: tuple[Chunk, ...]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, tensor: StoredTensor) -> "_Index":
        dims = len(tensor.shape)
        low = np.array([chunk.offsets for chunk in tensor.chunks], dtype=np.int64).reshape(len(tensor.chunks), dims)
        sizes = np.array([chunk.sizes for chunk in tensor.chunks], dtype=np.int64).reshape(len(tensor.chunks), dims)
        return cls(tensor.chunks, low, low + sizes)

    def overlaps(self, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[_Part]:
        begin = np.array(offsets, dtype=np.int64)
        end = begin + np.array(sizes, dtype=np.int64)
        low, high = np.maximum(self.low, begin), np.minimum(self.high, end)
        for index in np.flatnonzero((low < high).all(axis=1)).tolist():
            chunk = self.chunks[index]
            bounds = list(zip(low[index].tolist(), high[index].tolist(), strict=True))
            source = _slices(bounds, chunk.offsets)
            yield _Part(chunk, tuple(part.start for part in source), source, _slices(bounds, offsets))


def _slices(bounds: list[tuple[int, int]], origin: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(low - zero, high - zero) for (low, high), zero in zip(bounds, origin, strict=True))


def _file_faults(directory: Path, contents: Contents) -> Iterator[str]:
    needed: dict[str, tuple[int, str]] = {}
    for key, tensor in contents.tensors.items():
        for chunk in tensor.chunks:
            needed[chunk.file] = max(needed.get(chunk.file, (0, key)), (chunk.offset + chunk.length, key))
    for key, stored in contents.objects.items():
        needed[stored.file] = max(needed.get(stored.file, (0, key)), (stored.offset + stored.length, key))
    for file, (size, key) in sorted(needed.items()):
        try:
            found = (directory / file).stat().st_size
        except OSError:
            yield f"missing: {file}, with {key}"
            continue
        if found < size:
            yield f"truncated: {file} has {found} bytes; {key} ends at {size}"
