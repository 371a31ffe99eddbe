"""Writing a torch.distributed.checkpoint: chunks one after the other, by any number of writers, then one `.metadata`.

A `DistWriter` holds no more than the chunk it is given, and says what it wrote as plain JSON, which is how it gets from
a rank's writer to the one who finishes the checkpoint. Every file's size and checksum are taken while it is written.
Invariant: a directory without `.metadata` is no checkpoint, and one that has it is complete: every chunk of every
tensor, none twice.
"""

import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import torch
import xxhash
from torch import Tensor

from megarl.checkpoint.coverage import coverage_fault
from megarl.checkpoint.dist_format import (
    COMMON_FILE,
    CONFIG,
    CONFIG_FILE,
    METADATA_FILE,
    Chunk,
    Contents,
    StoredObject,
    StoredTensor,
    pickle_contents,
)
from megarl.checkpoint.errors import CheckpointError, list_faults
from megarl.checkpoint.new_directory import flush

FILE_BYTES = 4 << 30
"""A writer begins another file after so many bytes."""

OBJECTS_FILE = "__objects_0.distcp"

FileRecord = dict[str, Any]
"""{"bytes": size, "checksum": see `checksum_of`}"""


@dataclasses.dataclass(slots=True)
class Written:
    """What a writer wrote; `dataclasses.asdict` of it is plain JSON, and `Written(**json)` it again."""

    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    chunks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """key, shape, dtype, offsets, sizes, file, offset, length"""

    @property
    def num_bytes(self) -> int:
        return sum(record["bytes"] for record in self.files.values())


class DistWriter:
    """Writes the files `__<rank>_<n>.distcp` of one writer, n = `first`, `first + stride`, ...

    Several writers share a rank by `first` and `stride`. Leaving the `with` block by an error closes the file and
    leaves it to whoever removes the directory.
    """

    def __init__(
        self, directory: str | Path, *, rank: int, first: int = 0, stride: int = 1, file_bytes: int = FILE_BYTES
    ) -> None:
        self._directory, self._rank = Path(directory), rank
        self._number, self._stride, self._file_bytes = first, stride, file_bytes
        self._written = Written()
        self._stream: _HashedFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def write(
        self,
        key: str,
        tensor: Tensor,
        *,
        shape: tuple[int, ...],
        offsets: tuple[int, ...],
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        """Write a chunk: the elements of `tensor`, in order, are the rectangle of `sizes` (default: its own shape) at
        `offsets` of the tensor `key`, which has `shape`. It may lie on any device, and be a part of another tensor.

        Raises OSError where it cannot be written.
        """
        sizes = tuple(tensor.shape) if sizes is None else sizes
        if len(shape) != len(offsets) or len(shape) != len(sizes) or math.prod(sizes) != tensor.numel():
            raise ValueError(f"{key} {shape}: {tensor.numel()} elements are no chunk of {sizes} at {offsets}")
        stream = self._open()
        begin = stream.position
        stream.save(_compact(tensor).reshape(sizes))
        self._written.chunks.append(
            {
                "key": key,
                "shape": list(shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "offsets": list(offsets),
                "sizes": list(sizes),
                "file": stream.name,
                "offset": begin,
                "length": stream.position - begin,
            }
        )
        if stream.position >= self._file_bytes:
            self._finish_file()

    def finish(self) -> Written:
        """Everything is on the disk; what was written, for `finish_dist_checkpoint`."""
        self._finish_file()
        return self._written

    def _open(self) -> "_HashedFile":
        if self._stream is None:
            self._stream = _HashedFile(self._directory / f"__{self._rank}_{self._number}.distcp")
            self._number += self._stride
        return self._stream

    def _finish_file(self) -> None:
        if self._stream is not None:
            self._written.files[self._stream.name] = self._stream.finish()
            self._stream = None


def finish_dist_checkpoint(
    directory: str | Path,
    written: Iterable[Written],
    *,
    objects: Iterable[str] = (),
    common: Mapping[str, Any] | bytes | None = None,
) -> dict[str, FileRecord]:
    """Make one checkpoint of what all writers wrote into `directory`; returns the record of every file in it.

    objects: names of objects that are None (`global_space.extra_state_objects`).
    common: what Megatron's loader returns besides tensors: plain values and tensors, or the content of a common.pt.
    Raises CheckpointError, and writes no `.metadata`, where the chunks of a tensor disagree or do not cover it once.
    """
    target = Path(directory)
    parts = list(written)
    tensors = _tensors(chunk for part in parts for chunk in part.chunks)
    files = {name: record for part in parts for name, record in part.files.items()}
    stored: dict[str, StoredObject] = {}
    with _HashedFile(target / OBJECTS_FILE) as stream:
        for key in objects:
            begin = stream.position
            stream.save([None])
            stored[key] = StoredObject(key, stream.name, begin, stream.position - begin)
        files[stream.name] = stream.finish()
    contents = {
        CONFIG_FILE: json.dumps(CONFIG).encode(),
        COMMON_FILE: common if isinstance(common, bytes) else _saved(dict(common or {})),
        METADATA_FILE: pickle_contents(Contents(tensors, stored)),
    }
    for name, content in contents.items():
        files[name] = write_file(target / name, content)
    flush(target)
    return files


def write_file(file: Path, content: bytes) -> FileRecord:
    """Write a file and bring it to the disk; returns its record."""
    with _HashedFile(file) as stream:
        stream.write(content)
        return stream.finish()


def checksum_of(file: Path) -> str:
    """XXH3 of 128 bits, in hexadecimal, of a file's content: for chance, not against an adversary."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(8 << 20))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return str(digest.hexdigest())


class _HashedFile:
    """A file that is written from its beginning to its end, and knows its checksum then."""

    def __init__(self, path: Path) -> None:
        self.name, self.position = path.name, 0
        self._digest = xxhash.xxh3_128()
        self._file = io.BufferedWriter(io.FileIO(path, "xb"), 1 << 20)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, content: Any) -> int:
        try:
            view = memoryview(content).cast("B")
            self._file.write(view)
            self._digest.update(view)
            self.position += len(view)
        except BaseException as error:
            self._failure = error
            raise
        return len(view)

    def save(self, content: Any) -> None:
        """torch.save, which hides why it could not write, or what interrupted it, behind an error of its own."""
        try:
            torch.save(content, cast(IO[bytes], self))
        except BaseException:
            if self._failure is not None:
                raise self._failure from None
            raise

    def flush(self) -> None:
        """torch.save asks for it after each tensor; `finish` does it."""

    def finish(self) -> FileRecord:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.position, "checksum": str(self._digest.hexdigest())}

    def close(self) -> None:
        # A buffer that could not be written is written again on closing: the error is known already.
        try:
            self._file.close()
        except OSError:
            self._file.raw.close()


def _compact(tensor: Tensor) -> Tensor:
    """On the CPU, its elements in order, in storage of its own size: torch.save stores the whole storage."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _tensors(chunks: Iterable[Mapping[str, Any]]) -> dict[str, StoredTensor]:
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for chunk in chunks:
        by_key.setdefault(chunk["key"], []).append(chunk)
    tensors, faults = {}, []
    for key, found in by_key.items():
        kinds = sorted({f"{chunk['dtype']} {list(chunk['shape'])}" for chunk in found})
        places = [
            Chunk(tuple(chunk["offsets"]), tuple(chunk["sizes"]), chunk["file"], chunk["offset"], chunk["length"])
            for chunk in found
        ]
        shape = tuple(found[0]["shape"])
        fault = f"written as {' and as '.join(kinds)}" if len(kinds) > 1 else None
        fault = fault or coverage_fault(shape, [(chunk.offsets, chunk.sizes) for chunk in places])
        if fault is not None:
            faults.append(f"{key} {list(shape)}: {fault}")
        tensors[key] = StoredTensor(key, shape, getattr(torch, found[0]["dtype"]), tuple(places))
    if faults:
        raise CheckpointError(f"the writers' chunks make no checkpoint:\n  {list_faults(faults)}")
    return tensors
