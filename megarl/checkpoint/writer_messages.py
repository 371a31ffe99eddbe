"""What a rank and its writer process say to each other: one line of JSON each, so that neither can run the other's
code.

A pipe each way: the rank sends a `WriteRequest`, the process answers with a `Done` or a `Failed`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megarl.checkpoint.staging import StagedPiece


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """Write these pieces of staging memory as rank `rank`'s files in `directory`."""

    directory: str
    rank: int
    pieces: Sequence[StagedPiece]

    def as_line(self) -> bytes:
        pieces = [piece.as_json() for piece in self.pieces]
        return _line({"directory": self.directory, "rank": self.rank, "pieces": pieces})

    @classmethod
    def parse(cls, line: bytes) -> "WriteRequest":
        fields = json.loads(line)
        pieces = [StagedPiece.from_json(piece) for piece in fields.pop("pieces")]
        return cls(**fields, pieces=pieces)


@dataclass(frozen=True, slots=True)
class Done:
    """All of it is on the disk."""

    result: Any
    """JSON-able: what `dist_writer` says of the files, for the metadata of all ranks."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be written; for a person."""

    error: str


Reply = Done | Failed


def reply_line(reply: Reply) -> bytes:
    """What the writer process sends."""
    match reply:
        case Done(result=result):
            return _line({"written": result})
        case Failed(error=error):
            return _line({"error": error})


def parse_reply(line: bytes) -> Reply:
    """What the rank makes of it. ValueError for a line that is no reply."""
    match json.loads(line):
        case {"written": result}:
            return Done(result)
        case {"error": str(error)}:
            return Failed(error)
    raise ValueError(f"a checkpoint's writer process answered {line[:200]!r}")


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"
