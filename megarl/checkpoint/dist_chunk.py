"""Reading parts of a tensor that torch.save wrote into a section of a file, without reading the rest of it.

Such a section is a zip archive in which nothing is compressed: `data.pkl` says what the tensor is, `data/0` are its
bytes, with a CRC-32. Files are read and not mapped: a mapped page counts as memory for as long as the file stays
mapped, and one that a truncated file has lost ends the process.
"""

import functools
import io
import math
import os
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from megarl.checkpoint.errors import CheckpointError

_BLOCK_BYTES = 8 << 20
"""Read at a time where what is read is not what is wanted."""


class FileSection(io.RawIOBase):
    """Bytes [offset, offset + length) of an open file as a file of their own."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        super().__init__()
        self._descriptor, self._offset, self._length, self._position = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._length - self._position)]
        count = os.preadv(self._descriptor, [view], self._offset + self._position)
        self._position += count
        return count


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where the elements of a tensor lie in a file, in row-major order."""

    begin: int
    """Of the first byte, in the file."""
    num_bytes: int
    crc: int
    """0 where the writer computed none."""


def locate_tensor(
    section: FileSection, *, offset: int, sizes: tuple[int, ...], dtype: torch.dtype
) -> TensorPlace | None:
    """Where a section that begins at `offset` of its file has its tensor's elements; None where they lie otherwise than
    row by row, so that torch.load must read it.

    Raises ValueError or OSError for what is no tensor of these sizes and dtype.
    """
    with zipfile.ZipFile(section) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names or "data/0" not in names:
            raise ValueError(f"no tensor of torch.save: it has {sorted(names)}")
        tensor = _TensorPickle(io.BytesIO(_member(archive, names["data.pkl"]))).load()
        info = archive.getinfo(names["data/0"])
        little = "byteorder" not in names or _member(archive, names["byteorder"]) == b"little"
    if not isinstance(tensor, _Described):
        raise ValueError("no tensor of torch.save")
    # Megatron stores a layer's part without its first axis, the layer.
    if (_squeezed(tensor.sizes), tensor.dtype) != (_squeezed(sizes), dtype):
        raise ValueError(f"expected {dtype} {list(sizes)}, found {tensor.dtype} {list(tensor.sizes)}")
    num_bytes = math.prod(sizes) * dtype.itemsize
    plain = little and tensor.first == 0 and info.compress_type == zipfile.ZIP_STORED and info.file_size == num_bytes
    if not plain or not _row_major(tensor.sizes, tensor.strides):
        return None
    header = bytearray(30)  # of a zip entry; the lengths of the name and of an extra field end it
    section.seek(info.header_offset)
    section.readinto(header)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return TensorPlace(offset + info.header_offset + len(header) + lengths, num_bytes, info.CRC)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.CRC == 0:
        info.CRC = None  # type: ignore[assignment]  # zipfile then compares nothing
    return archive.read(info)


def check_archive(file: Path) -> bytes:
    """The content of a file that torch.save wrote; nothing is unpickled. CheckpointError where it is damaged."""
    try:
        content = file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                _member(archive, name)
    except Exception as error:  # a damaged archive raises almost anything
        raise CheckpointError(f"{file} is damaged ({error}); copy it again, or use another checkpoint") from error
    return content


def load_tensor(section: FileSection) -> Tensor:
    """The whole tensor, by torch.load, which runs no code of the file."""
    section.seek(0)
    loaded = torch.load(cast(IO[bytes], section), map_location="cpu", weights_only=True)
    if not isinstance(loaded, Tensor):
        raise ValueError(f"expected a tensor, found {type(loaded).__name__}")
    return loaded


def check_crc(descriptor: int, place: TensorPlace) -> None:
    """CheckpointError where the bytes are not those that were written."""
    block, crc = bytearray(min(_BLOCK_BYTES, place.num_bytes)), 0
    for begin in range(0, place.num_bytes, _BLOCK_BYTES):
        view = memoryview(block)[: min(_BLOCK_BYTES, place.num_bytes - begin)]
        _read_into(descriptor, view, place.begin + begin)
        crc = zlib.crc32(view, crc)
    if place.crc not in (0, crc):
        raise CheckpointError(f"its bytes have the CRC-32 {crc:08x}, and {place.crc:08x} was written: they changed")


def read_box(
    descriptor: int, place: TensorPlace, out: Tensor, *, shape: tuple[int, ...], start: tuple[int, ...]
) -> None:
    """Fill `out` with the box of its shape at `start` of the tensor at `place`, which has `shape`."""
    _read_box(descriptor, place.begin, out, shape, start)


def _read_box(descriptor: int, begin: int, out: Tensor, shape: tuple[int, ...], start: tuple[int, ...]) -> None:
    if not shape:
        _read_tensor(descriptor, begin, out)
        return
    row_bytes = math.prod(shape[1:]) * out.dtype.itemsize
    if tuple(out.shape[1:]) == shape[1:]:
        _read_tensor(descriptor, begin + start[0] * row_bytes, out)
    elif len(shape) == 2:
        # Columns: whole rows are read, as many as a block holds.
        count = max(1, _BLOCK_BYTES // row_bytes)
        for row in range(0, out.shape[0], count):
            wanted = out[row : row + count]
            rows = torch.empty((wanted.shape[0], shape[1]), dtype=out.dtype)
            _read_tensor(descriptor, begin + (start[0] + row) * row_bytes, rows)
            wanted.copy_(rows[:, start[1] : start[1] + out.shape[1]])
    else:
        for index in range(out.shape[0]):
            _read_box(descriptor, begin + (start[0] + index) * row_bytes, out[index], shape[1:], start[1:])


def _read_tensor(descriptor: int, begin: int, out: Tensor) -> None:
    if out.is_contiguous():
        _read_into(descriptor, out.reshape(-1).view(torch.uint8).numpy().data, begin)
        return
    count = max(1, _BLOCK_BYTES // max(1, out[0].nbytes))
    for row in range(0, out.shape[0], count):
        wanted = out[row : row + count]
        values = torch.empty(wanted.shape, dtype=out.dtype)
        _read_tensor(descriptor, begin + row * out[0].nbytes, values)
        wanted.copy_(values)


def _read_into(descriptor: int, view: memoryview, begin: int) -> None:
    """All of `view`; EOFError where the file ends before."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], begin + done)
        if count == 0:
            raise EOFError(f"the file ends at byte {begin + done}, {len(view) - done} bytes too early")
        done += count


def _squeezed(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _row_major(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
"""By torch's old names, which are those in a file; asking torch's classes themselves warns."""


@dataclass(frozen=True, slots=True)
class _Described:
    dtype: torch.dtype
    first: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def _describe(storage: Any, first: int, sizes: Any, strides: Any, *_: Any) -> _Described:
    return _Described(storage[1], first, tuple(sizes), tuple(strides))


class _TensorPickle(pickle.Unpickler):
    """Says what a pickled tensor is; makes nothing but that, so it runs no code of the file."""

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return functools.partial(_describe)  # a pickle could set attributes of the function itself
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in (("collections", "OrderedDict"), ("torch", "Size")):
            return super().find_class(module, name)
        raise ValueError(f"its pickle names {module}.{name}, which no plain tensor needs")
