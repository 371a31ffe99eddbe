"""The header of a message: int64 [3 + parts + 4] of version, kind, payload bytes, a checksum for every part, a seal.

The payload follows as a message of its own, so that a receiver learns its length before it comes. The checksums are of
the elements as they must be after the message was taken, whole or as changes. The seal is the session's, of the header
and of which message it is of which publication: a header that comes from a stranger, from another place or from an
earlier publication is refused before its payload is received.
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.reshard.pack import Part
from megarl.reshard.plan import Place
from megarl.reshard.seal import Seal
from megarl.reshard.signals import TransportError

DENSE, SPARSE = 0, 1
_FIXED = 3
_SEAL_WORDS = 4
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    kind: int
    num_bytes: int
    checksums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Which message a header belongs to, and the seal of its session; the same on sender and receiver."""

    seal: Seal
    serial: int
    """Of the publication in its session."""
    place: Place

    def of(self, words: Tensor) -> bytes:
        """The seal of a header's words but the last four."""
        block, start, stop = self.place
        name = json.dumps([self.serial, block.as_json(), start, stop]).encode()
        return self.seal.of(b"header", name, words.numpy().tobytes())


def make_header(header: Header, envelope: Envelope) -> Tensor:
    """[3 + parts + 4] int64 on the CPU; checksums are stored modulo 2**64 with a sign."""
    signed = [value - (1 << 64) if value >= 1 << 63 else value for value in header.checksums]
    words = torch.tensor([header.version, header.kind, header.num_bytes, *signed], dtype=torch.int64)
    return torch.cat([words, torch.frombuffer(bytearray(envelope.of(words)), dtype=torch.int64)])


def header_room(num_parts: int, device: torch.device) -> Tensor:
    """Where to receive a header."""
    return torch.empty(_FIXED + num_parts + _SEAL_WORDS, dtype=torch.int64, device=device)


def read_header(words: Tensor, envelope: Envelope) -> Header:
    """The header in received words; TransportError when its seal is not that of this message and session."""
    plain, seal = words.cpu().split([words.numel() - _SEAL_WORDS, _SEAL_WORDS])
    if not hmac.compare_digest(envelope.of(plain), seal.numpy().tobytes()):
        raise TransportError(
            "the header of a message does not carry this session's seal: someone else is connected to this run's "
            "peers, or it was changed on the way; see README, who can reach a run"
        )
    version, kind, num_bytes, *signed = plain.tolist()
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
