"""rollouts/step-N.parquet: every response of a step, as text and with its per-token numbers.

One row per response. The list columns of a row are parallel: entry i of response_tokens, behavior_logp, old_logp and
ref_logp belong to one token. Log-probs are natural logarithms in float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from megarl.telemetry.atomic_file import replace_atomically


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TOKENS = pa.list_(_required("element", pa.int32()))
_LOGPS = pa.list_(_required("element", pa.float32()))

SCHEMA = pa.schema(
    [
        _required("step", pa.int32()),
        _required("prompt_index", pa.int64()),
        _required("sample_index", pa.int32()),
        _required("policy_version", pa.int32()),
        _required("prompt_text", pa.string()),
        _required("response_text", pa.string()),
        _required("prompt_tokens", _TOKENS),
        _required("response_tokens", _TOKENS),
        _required("behavior_logp", _LOGPS),
        _required("old_logp", _LOGPS),
        pa.field("ref_logp", _LOGPS),
        _required("reward", pa.float64()),
        _required("verifier_reward", pa.float64()),
        _required("overlong", pa.float64()),
        pa.field("failure", pa.string()),
        _required("advantage", pa.float64()),
        _required("stop_reason", pa.string()),
    ]
)
"""Columns of the file, in their order; a null is legal in ref_logp and failure only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One response of a step as it was scored and trained on."""

    step: int
    prompt_index: int
    """Position of the prompt in the data set."""
    sample_index: int
    """Position in the prompt's group, from 0."""
    policy_version: int
    """Weights that sampled it."""
    prompt_text: str
    response_text: str
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    """Per response token, from the engine when it sampled."""
    old_logp: tuple[float, ...]
    """Per response token, from the trainer before the step's first update."""
    ref_logp: tuple[float, ...] | None
    """Per response token, from the reference weights; None: the run has no reference."""
    reward: float
    """verifier_reward + overlong."""
    verifier_reward: float
    overlong: float
    """The penalty, at most 0."""
    failure: str | None
    """Why the verifier gave no answer: "timeout", "crash"; None: it answered."""
    advantage: float
    stop_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        for name in ("behavior_logp", "old_logp", "ref_logp"):
            logps = getattr(self, name)
            if logps is not None and len(logps) != len(self.response_tokens):
                raise ValueError(
                    f"prompt {self.prompt_index}, sample {self.sample_index}: {len(self.response_tokens)} response "
                    f"tokens but {len(logps)} entries in {name}"
                )


def write_rollouts(path: Path, rows: Iterable[RolloutRow]) -> None:
    """Write `rows` to `path`, whole or not at all; an existing file is replaced."""
    all_rows = list(rows)
    columns = {name: [getattr(row, name) for row in all_rows] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    with replace_atomically(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_rollouts(path: Path) -> list[RolloutRow]:
    """The rows of a file that `write_rollouts` made. ValueError when its columns are others."""
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path} has columns {table.schema.names}, expected {SCHEMA.names}")
    return [_row(columns) for columns in table.to_pylist()]


def _row(columns: dict[str, Any]) -> RolloutRow:
    cells: dict[str, Any] = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in columns.items()}
    return RolloutRow(**cells)
