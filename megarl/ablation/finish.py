"""The tables of an ablation, made anew from its cells' runs: at any time, as often as one likes."""

import json

from megarl.ablation.cell_runs import read_cells
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.summary import AblationSummary, summarise_ablation
from megarl.ablation.table import build_table, write_table
from megarl.telemetry.atomic_file import write_text_atomically


def tabulate(directory: AblationDirectory) -> AblationSummary:
    """Write table.parquet and summary.json from what there is; both are whole or as they were.

    Cells that are missing, cut short or cannot be read are named in the summary. Raises ValueError where the plan
    itself is damaged, OSError where the files cannot be written.
    """
    plan = directory.plan()
    cells = read_cells(directory)
    summary = summarise_ablation(plan, cells)
    write_table(directory.table_path, build_table(cells))
    text = json.dumps(summary.as_json(), indent=2, allow_nan=False) + "\n"
    write_text_atomically(directory.summary_path, text)
    return summary
