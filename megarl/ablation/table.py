"""table.parquet: every number that the cells' runs have logged, one a row.

| column | what |
|---|---|
| cell, setting, seed | which run |
| step | RL step; 0 is what was measured of the weights that the run began with |
| metric | name in metrics.jsonl: training's, and `eval/<benchmark>/<measure>` of evaluations inside the run |
| value | the number; what was logged and is not finite has no row |
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megarl.ablation.cell_runs import CellRun
from megarl.ablation.measures import is_number
from megarl.telemetry.atomic_file import replace_atomically

SCHEMA = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
_NO_METRICS = ("step", "timestamp")


def build_table(cells: Sequence[CellRun]) -> pa.Table:
    """By cell in the order of the plan, step, and name; cells without a step have no rows."""
    parts = [SCHEMA.empty_table(), *(_table_of(one) for one in cells)]
    return pa.concat_tables(parts)


def write_table(path: Path, table: pa.Table) -> None:
    """Replace the file, whole."""
    with replace_atomically(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _table_of(one: CellRun) -> pa.Table:
    steps, metrics, values = [], [], []
    for row in one.rows:
        step = int(row["step"] or 0)
        for name in sorted(row.keys() - set(_NO_METRICS)):
            value = row[name]
            if is_number(value):
                steps.append(step)
                metrics.append(name)
                values.append(float(value))
    rows = len(values)
    columns = [[one.cell.name] * rows, [one.cell.setting] * rows, [one.cell.seed] * rows, steps, metrics, values]
    return pa.table([pa.array(column, of.type) for column, of in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
