"""A run of the rows of its metrics alone, for tests of figures."""

from collections.abc import Sequence
from pathlib import Path

from megarl.report.run_data import Row, RunData, as_columns
from megarl.telemetry.run_directory import RunDirectory


def data_of(rows: Sequence[Row]) -> RunData:
    """As `read_run` of a directory with these rows, and with nothing else."""
    steps, columns = as_columns(rows)
    return RunData(
        run=RunDirectory(Path("none")),
        steps=steps,
        columns=columns,
        last=rows[-1],
        config={},
        versions=None,
        status="finished",
        message=None,
        step=len(rows),
    )
