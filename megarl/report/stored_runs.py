"""The runs of a stored ablation (`ablation.stored`), for the figures that compare runs.

Of a run there are its metrics and, where they are stored, its updates; not its rollouts, answers and files, so what is
drawn of those is not: `NOT_STORED` says so.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megarl.ablation.stored import StoredAblation
from megarl.report.figure import Values
from megarl.report.groups import SEED
from megarl.report.run_data import EVALUATION, RunData
from megarl.telemetry.run_directory import RunDirectory

NOT_STORED = (
    "a stored table has metrics and updates alone: no rollouts, so no tokens and no histograms of ratios; no answers, "
    "so no intervals over problems; and of the metrics those that its documents read"
)


@dataclass(kw_only=True)
class StoredRun(RunData):
    """One finished run of a stored ablation; its directory is not there."""

    stored_updates: list[dict[str, Any]] = field(default_factory=list)

    def read_updates(self) -> list[dict[str, Any]]:
        return self.stored_updates

    @cached_property
    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """pass@k from the metrics, without intervals over problems."""
        found: dict[int, dict[str, Any]] = {}
        for name, values in self.columns.items():
            benchmark, _, measure = name.removeprefix(EVALUATION).rpartition("/")
            if name.startswith(EVALUATION) and measure.startswith("pass@"):
                for step, value in zip(self.steps.tolist(), values.tolist(), strict=True):
                    if math.isfinite(value):
                        one = {"value": value, "low": math.nan, "high": math.nan}
                        found.setdefault(int(step), {}).setdefault(benchmark, {})[measure] = one
        return sorted(found.items())


def stored_runs(stored: StoredAblation, path: Path) -> list[StoredRun]:
    """Of every cell, in the table's order. path: of the table, under which no run lies."""
    rows = _rows_by_cell(stored)
    updates = _updates_by_cell(stored)
    found = []
    for cell, (setting, seed) in stored.cells.items():
        steps, columns = _as_columns(*rows[cell])
        config = _nested({**stored.facts.config, **stored.setting(setting).config, SEED: seed, "name": cell})
        found.append(
            StoredRun(
                run=RunDirectory(path / cell),
                steps=steps,
                columns=columns,
                last={name: float(values[-1]) for name, values in columns.items()},
                config=config,
                versions={**stored.facts.versions, "verb": "train"},
                status="finished",
                message=None,
                step=int(steps[-1]),
                stored_updates=updates.get(cell, []),
            )
        )
    return found


def _rows_by_cell(stored: StoredAblation) -> dict[str, tuple[Values, list[str], Values]]:
    """Cell -> (steps, metrics, values) of its rows."""
    cells = np.array(stored.table["cell"].to_pylist())
    steps, values = (stored.table[name].to_numpy().astype(np.float64) for name in ("step", "value"))
    metrics = np.array(stored.table["metric"].to_pylist())
    of_cell = {cell: cells == cell for cell in stored.cells}
    return {cell: (steps[mask], metrics[mask].tolist(), values[mask]) for cell, mask in of_cell.items()}


def _as_columns(steps: Values, metrics: list[str], values: Values) -> tuple[Values, dict[str, Values]]:
    """(steps in order, values by name: NaN where a step has none)."""
    known, places = np.unique(steps, return_inverse=True)
    columns: dict[str, Values] = {}
    for place, metric, value in zip(places.tolist(), metrics, values.tolist(), strict=True):
        columns.setdefault(metric, np.full(len(known), np.nan))[place] = value
    return known, columns


def _updates_by_cell(stored: StoredAblation) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in [] if stored.updates is None else stored.updates.to_pylist():
        found.setdefault(row.pop("cell"), []).append(row)
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of dotted paths."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        *tables, name = path.split(".")
        table = root
        for one in tables:
            inner = table.setdefault(one, {})
            if not isinstance(inner, dict):
                raise ValueError(f"stored configuration: {path} is in {one}, which is a value: {json.dumps(inner)}")
            table = inner
        table[name] = value
    return root
