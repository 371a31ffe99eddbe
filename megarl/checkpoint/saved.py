"""What the policy ranks' part of a checkpoint is, once it is on the disk."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The files that hold the ranks' state, metadata included."""

    updates: int
    """Optimizer updates that it contains."""
    layout: dict[str, Any]
    """Of the policy that wrote it."""
    model: dict[str, Any]
    """`ModelShape` as JSON."""
    files: dict[str, dict[str, Any]]
    """By name {"bytes", "checksum"}."""
    staged_bytes: int
    """Host memory that the rank with the most held its copy in."""
