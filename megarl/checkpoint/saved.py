"""What the policy ranks' part of a checkpoint is, once it is on the disk."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedNumbers:
    """What of a rank's state is no tensor, at the moment when the rest was copied."""

    updates: int
    """Optimizer updates that were made: the place in the learning rate's schedule."""
    optimizer_step: int | None
    """The optimizer's own count since its moments were last forgotten; None where the rank updates nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The files that hold the ranks' state, metadata included."""

    updates: int
    optimizer_step: int
    """As in `StagedNumbers`, which are the same on all ranks."""
    layout: dict[str, Any]
    """Of the policy that wrote it."""
    model: dict[str, Any]
    """`manifest.describe_model`."""
    files: dict[str, dict[str, Any]]
    """By name {"bytes", "checksum"}."""
    staged_bytes: int
    """Host memory that the rank with the most held its copy in."""
