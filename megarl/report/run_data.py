"""What a report reads of a run: its metrics as columns, its configuration, its evaluations and how it stands.

A file that is missing leaves a gap; one that is damaged is left out, and `problems` says so.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megarl.report.figure import Values
from megarl.report.problems import Problems
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_readable_metrics

Row = Mapping[str, float | None]
EVALUATION = "eval/"


@dataclass(kw_only=True)
class RunData:
    """One run. Of 100 runs with 1,000 steps the metrics take 100 MB: rows are turned into columns at once."""

    run: RunDirectory
    steps: Values
    columns: dict[str, Values]
    """By name a value per step; NaN: there is none."""
    last: Row | None
    """The last row as it was written; None before the first step has ended."""
    config: Mapping[str, Any]
    """config.toml as tables; empty without."""
    versions: Mapping[str, Any] | None
    status: str
    message: str | None
    step: int
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def verb(self) -> str | None:
        """ "train", "sft" or "eval"; None where nothing says so."""
        return (self.versions or {}).get("verb")

    @property
    def seed(self) -> int | None:
        """train.seed."""
        return self.config.get("train", {}).get("seed")

    def __contains__(self, metric: str) -> bool:
        return metric in self.columns and bool(np.isfinite(self.columns[metric]).any())

    def series(self, metric: str) -> tuple[Values, Values]:
        """(steps, values). Of an evaluation only the steps that have one; else every step, NaN without a value."""
        values = self.columns.get(metric)
        if values is None:
            return np.empty(0), np.empty(0)
        kept = np.isfinite(values) if metric.startswith(EVALUATION) else self.steps > 0
        return self.steps[kept], values[kept]

    def read_updates(self) -> list[dict[str, Any]]:
        """Of each optimizer update its step and metrics; `problems` says where a line cannot be read."""
        problems: list[str] = []
        found = list(iterate_updates(self.run, problems))
        self.problems += [line for line in problems if line not in self.problems]
        return found

    @cached_property
    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, results.json's "benchmarks") of the evaluations that are complete, by step."""
        found = []
        for path in sorted(self.run.evaluations.glob("step-*/results.json")):
            try:
                found.append((int(path.parent.name.removeprefix("step-")), _benchmarks(path)))
            except (OSError, ValueError) as error:
                self.problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return found


def _benchmarks(path: Path) -> dict[str, Any]:
    benchmarks = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(benchmarks, dict) or not isinstance(benchmarks.get("benchmarks"), dict):
        raise ValueError('expected a JSON object with "benchmarks"')
    return dict(benchmarks["benchmarks"])


def read_run(run: RunDirectory) -> RunData:
    """Everything but rollouts. ValueError when `run` is no run directory."""
    if not run.metrics_path.is_file() and not run.state_path.is_file():
        raise ValueError(
            f"{run.path} has no metrics.jsonl and no state.json; expected a run directory that megarl made"
        )
    problems = Problems()
    rows, damaged = read_readable_metrics(run.metrics_path) if run.metrics_path.is_file() else ([], {})
    for line, reason in damaged.items():
        problems.add(f"{run.metrics_path.name}, line {line}", reason)
    status, message, step = "unknown", None, int(rows[-1]["step"] or 0) if rows else 0
    with problems.tolerate(run.state_path.name):
        if run.state_path.is_file():
            step = run.read_state().step
            status, message = run.standing()
    versions = None
    with problems.tolerate(run.versions_path.name):
        versions = run.read_versions() if run.versions_path.is_file() else None
    config: dict[str, Any] = {}
    with problems.tolerate(run.config_path.name):
        if run.config_path.is_file():
            config = tomllib.loads(run.config_path.read_text(encoding="utf-8"))
    steps, columns = as_columns(rows)
    return RunData(
        run=run,
        steps=steps,
        columns=columns,
        last=rows[-1] if rows else None,
        config=config,
        versions=versions,
        status=status,
        message=message,
        step=step,
        problems=problems.lines(),
    )


def as_columns(rows: Sequence[Row]) -> tuple[Values, dict[str, Values]]:
    """(steps, values by name). What a row lacks, or has as null, is NaN."""
    columns: dict[str, Values] = {}
    for index, row in enumerate(rows):
        for name, value in row.items():
            if name not in columns:
                columns[name] = np.full(len(rows), np.nan)
            if value is not None:
                columns[name][index] = value
    steps = columns.pop("step", np.empty(0))
    columns.pop("timestamp", None)
    return steps, columns


def iterate_updates(run: RunDirectory, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The lines of updates.jsonl one by one: of each optimizer update its step and metrics; nothing where there is no
    such file. At the end `problems` has a line more where some could not be read; a last one without its newline is
    still being written."""
    if not run.updates_path.is_file():
        return
    damaged = []
    with run.updates_path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                update = json.loads(line)
                int(update["step"])
            except (ValueError, KeyError, TypeError, OverflowError):
                damaged.append(number)
                continue
            yield update
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        problems.append(
            f'{run.updates_path.name}, line {damaged[0]}{more}: expected a JSON object with a "step"; left out'
        )
