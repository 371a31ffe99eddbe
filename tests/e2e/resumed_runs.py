"""Runs that are killed and go on, and what must then be as if they had not."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.checkpoint.run_checkpoint import newest_checkpoint
from megarl.telemetry.rollouts import RolloutRow, read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.processes import Megarl
from tests.e2e.test_equal_runs import rows_of

START_TIMEOUT_S = 400
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kept:
    """What of a run lies before its checkpoint, as it is on the disk."""

    step: int
    """Of the checkpoint; 0: there is none."""
    rows: dict[Path, bytes]
    files: dict[Path, tuple[int, int]]
    """Rollouts and exports: (inode, time of the last change)."""

    @classmethod
    def of(cls, run: RunDirectory) -> "Kept":
        newest = newest_checkpoint(run.checkpoints)
        step = newest.step if newest else 0
        rows = {}
        for path in (run.metrics_path, run.updates_path):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith(b"\n")]
            rows[path] = b"".join(line for line in whole if json.loads(line)["step"] <= step)
        steps = [run.rollouts_path(number) for number in range(1, step + 1)]
        return cls(step, rows, {path: _identity(path) for path in steps})

    def is_untouched(self) -> bool:
        """Whether a run that went on has left it, byte for byte."""
        return all(path.read_bytes().startswith(was) for path, was in self.rows.items()) and all(
            _identity(path) == was for path, was in self.files.items()
        )


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def train_to_the_end(*arguments: str | Path, cwd: Path) -> str:
    """What `megarl train ...` said."""
    with Megarl("train", *arguments, cwd=cwd) as run:
        assert run.wait(START_TIMEOUT_S) == 0, run.text
        return run.text


def train_until_killed(moment: str, step: int, *arguments: str | Path, cwd: Path) -> str:
    """What `megarl train ...` said before it was killed at this moment of the step."""
    program = [sys.executable, ROOT / "tests" / "e2e" / "killed_at.py", moment, str(step)]
    with Megarl("train", *arguments, cwd=cwd, program=program) as run:
        assert run.wait(START_TIMEOUT_S) == -9, run.text
        return run.text


def latest(cwd: Path) -> RunDirectory:
    return RunDirectory.open(cwd / "runs" / "latest")


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of steps and of updates, without the clock."""
    return rows_of(run.metrics_path) + rows_of(run.updates_path)


def rollouts_of(run: RunDirectory, step: int) -> list[RolloutRow]:
    return read_rollouts(run.rollouts_path(step))


def exported(run: RunDirectory) -> dict[str, bytes]:
    """By name, the files of the last weights."""
    newest = max(run.exports.glob("step-*"))
    return {path.name: path.read_bytes() for path in sorted(newest.iterdir())}


def saved_state(run: RunDirectory) -> dict[str, Any]:
    """All that the newest checkpoint holds of the run: where it is, and every tensor's bytes."""
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    files = {path.name: path.read_bytes() for path in sorted(newest.path.glob("*.distcp"))}
    manifest = newest.manifest
    return {"progress": manifest.progress, "updates": manifest.updates, "step": manifest.step, "files": files}
