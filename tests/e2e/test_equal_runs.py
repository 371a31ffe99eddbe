"""Two runs of one configuration and seed differ in the clock alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl

CLOCK = ("timestamp", "timing_s/", "perf/", "memory/")


def run_once(cwd: Path, model: Path) -> RunDirectory:
    cwd.mkdir()
    with Megarl("train", write_tiny_config(cwd, model), "train.steps=2", cwd=cwd) as run:
        assert run.wait(400) == 0, run.text
        return run.directory


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(isinstance(row["timestamp"], float) for row in rows)
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    return [{name: value for name, value in row.items() if not name.startswith(CLOCK)} for row in rows]


@pytest.mark.slow
def test_two_runs_differ_in_the_clock_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    first, second = (run_once(tmp_path / name, tiny_model_dir) for name in ("first", "second"))
    for path, other in (
        (first.metrics_path, second.metrics_path),
        (first.updates_path, second.updates_path),
    ):
        assert len(rows_of(path)) >= 2
        assert rows_of(path) == rows_of(other)
    assert read_rollouts(first.rollouts_path(2)) == read_rollouts(second.rollouts_path(2))
