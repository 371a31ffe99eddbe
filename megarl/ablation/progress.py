"""How far a run is, by the last line of its metrics: step, reward, entropy, hours that are left."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of one run; None: not known."""

    step: int = 0
    steps: int
    reward: float | None = None
    entropy: float | None = None
    seconds_per_step: float | None = None
    """Of the last two steps that follow each other in the file: between their ends."""

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last step."""
        if self.seconds_per_step is None:
            return None
        return max(0, self.steps - self.step) * self.seconds_per_step


class ProgressReader:
    """Reads each run's file again only when it has grown."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, Progress]] = {}

    def read(self, metrics: Path, *, steps: int) -> Progress:
        """metrics: metrics.jsonl of a run, which need not be there yet."""
        try:
            size = metrics.stat().st_size
            before = self._seen.get(metrics)
            if before is None or before[0] != size:
                before = self._seen[metrics] = (size, _read(metrics, size, steps))
        except OSError:
            return Progress(steps=steps)
        return before[1]


def _read(path: Path, size: int, steps: int) -> Progress:
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES), os.SEEK_SET)
        *lines, _torn = file.read().split(b"\n")
    rows = [row for line in lines[-2:] if (row := _parse(line)) is not None]
    if not rows:
        return Progress(steps=steps)
    last = rows[-1]
    step = int(last["step"])
    return Progress(
        step=step,
        steps=steps,
        reward=last.get("reward/mean"),
        entropy=last.get("actor/entropy"),
        seconds_per_step=_pace(rows),
    )


def _pace(rows: list[dict[str, Any]]) -> float | None:
    last = rows[-1]
    if len(rows) == 2 and last["step"] == rows[0]["step"] + 1:
        gap = float(last["timestamp"] - rows[0]["timestamp"])
        if gap > 0:
            return gap
    seconds = last.get("timing_s/step")
    return None if seconds is None else float(seconds)


def _parse(line: bytes) -> dict[str, Any] | None:
    """None for the end of a line that is longer than what was read."""
    try:
        row = json.loads(line)
        int(row["step"])
        float(row["timestamp"])
    except (ValueError, KeyError, TypeError):
        return None
    return dict(row)
