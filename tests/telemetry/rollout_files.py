"""Files of rollouts that tests write row by row."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from megarl.telemetry.rollouts import RolloutRow, write_rollouts


def write_rows(path: Path, rows: Iterable[RolloutRow]) -> None:
    """As `write_rollouts` of their columns."""
    listed = list(rows)
    write_rollouts(path, {one.name: [getattr(row, one.name) for row in listed] for one in fields(RolloutRow)})
