"""Checksums of a checkpoint's files: CRC-32, which the standard library computes at about a gigabyte a second.

It finds what disks and networks do to a file; it is no protection against a person.
"""

import zlib
from pathlib import Path
from typing import Any

_READ_BYTES = 4 << 20


class FileSum:
    """Of bytes that are given one after the other."""

    def __init__(self) -> None:
        self._crc, self._bytes = 0, 0

    def add(self, data: bytes | memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._bytes += len(data)

    def as_json(self) -> dict[str, Any]:
        """{"bytes", "checksum"}: what a manifest says of a file."""
        return {"bytes": self._bytes, "checksum": f"crc32:{self._crc:08x}"}


def describe_file(path: Path) -> dict[str, Any]:
    """The same of a file as it is on the disk. OSError where it cannot be read."""
    total = FileSum()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.add(view[:count])
    return total.as_json()
