"""The header of a message: int64 [3 + parts] of version, kind, payload bytes, and a checksum for every part.

The payload follows as a message of its own, so that a receiver learns its length before it comes. The checksums are of
the elements as they must be after the message was taken, whole or as changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.reshard.pack import Part
from megarl.reshard.signals import TransportError

DENSE, SPARSE = 0, 1
_FIXED = 3
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    kind: int
    num_bytes: int
    checksums: tuple[int, ...]


def make_header(version: int, kind: int, num_bytes: int, checksums: Sequence[int]) -> Tensor:
    """[3 + parts] int64 on the CPU; checksums are stored modulo 2**64 with a sign."""
    signed = [value - (1 << 64) if value >= 1 << 63 else value for value in checksums]
    return torch.tensor([version, kind, num_bytes, *signed], dtype=torch.int64)


def header_room(num_parts: int, device: torch.device) -> Tensor:
    """Where to receive a header."""
    return torch.empty(_FIXED + num_parts, dtype=torch.int64, device=device)


def read_header(words: Tensor) -> Header:
    """The header in received words."""
    version, kind, num_bytes, *signed = words.tolist()
    return Header(version, kind, num_bytes, tuple(value % (1 << 64) for value in signed))


def name_parts(parts: Sequence[Part]) -> str:
    """For messages: the tensors a message holds."""
    names = [part.tensor for part in parts]
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{names[0]} .. {names[-1]} ({len(names)} tensors)"


def compare_checksums(parts: Sequence[Part], sent: Sequence[int], found: Sequence[int], *, sender: str) -> None:
    """TransportError that names the tensors whose elements are not those that were sent."""
    wrong = [
        f"{part.tensor} (elements {part.start} to {part.stop} of the message: sent {ours:016x}, found {theirs:016x})"
        for part, ours, theirs in zip(parts, sent, found, strict=True)
        if ours != theirs
    ]
    if wrong:
        raise TransportError(f"arrived changed from {sender}, by its checksum: {'; '.join(wrong[:_NAMES_SHOWN])}")
