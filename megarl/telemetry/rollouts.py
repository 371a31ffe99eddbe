"""rollouts/step-N.parquet: every response of a step, as text and with its per-token numbers.

One row per response. The list columns of a row are parallel: entry i of each belongs to token i of response_tokens.

| columns | what | null where |
|---|---|---|
| step, prompt_index, sample_index, sample_id, policy_version | which response, of which weights | |
| prompt_text, response_text, prompt_tokens, response_tokens | what was said | |
| token_text | the text of each response token alone | nobody decoded them one by one |
| behavior_logp, old_logp, ref_logp | log p: engine when it sampled, trainer, reference | ref_logp: no reference |
| old_entropy | entropy at the token's position under the weights of old_logp | |
| logp, entropy | under the weights that the response's own update started from | the response was not traced |
| ratio, low, high | r of the update, and its bounds (high = inf: no bound) | not traced |
| expected_q | N = sum over the vocabulary of p² (log p + H) under the weights of logp and entropy | not traced |
| gate, weight | g, what multiplies grad log p before weights; product of the token weights | not traced |
| coefficient | c, what multiplied grad log p in the update, all weights included | not traced |
| token_advantage | the advantage after token shaping | not traced |
| rule | the rules that acted on the token, "clip_high+tis"; "" is none | not traced |
| reward, verifier_reward, overlong, bonus, failure | how the response was scored | failure: it was |
| advantage, stop_reason | what training made of it; why sampling ended | |

With Q = p (log p + H), p = exp(logp): entropy/budget of an update is the sum over its tokens of c (N - Q), and
entropy/clip_low_contribution (clip_high_contribution) the mean over its tokens of exp(logp - old_logp) (N - Q) where
ratio < low (ratio > high), else 0. A mini-batch is train.mini_batch_responses rows with consecutive sample_id; a step's
metric is the mean over updates, or tokens. logging.traced_responses says how many rows are traced.

reward = verifier_reward (times reward.truncated_factor where stop_reason is "length") + overlong + bonus.

Log-probs are natural logarithms and entropies nats; numbers per token are float32. The rules are those of
`objective.tokens.Rule`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megarl.records import TokenTrace
from megarl.telemetry.atomic_file import replace_atomically


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TOKENS = pa.list_(_required("element", pa.int32()))
_NUMBERS = pa.list_(_required("element", pa.float32()))
_TEXTS = pa.list_(_required("element", pa.dictionary(pa.int32(), pa.string())))

_ROWS_AT_ONCE = 64

_TRACE_COLUMNS = {
    "logp": "logp",
    "entropy": "entropy",
    "expected_q": "expected_q",
    "ratio": "ratio",
    "low": "low",
    "high": "high",
    "gate": "gate",
    "weight": "weight",
    "coefficient": "coefficient",
    "token_advantage": "advantage",
    "rule": "rule",
}
"""Column: field of `TokenTrace`."""

SCHEMA = pa.schema(
    [
        _required("step", pa.int32()),
        _required("prompt_index", pa.int64()),
        _required("sample_index", pa.int32()),
        _required("sample_id", pa.int32()),
        _required("policy_version", pa.int32()),
        _required("prompt_text", pa.string()),
        _required("response_text", pa.string()),
        _required("prompt_tokens", _TOKENS),
        _required("response_tokens", _TOKENS),
        pa.field("token_text", _TEXTS),
        _required("behavior_logp", _NUMBERS),
        _required("old_logp", _NUMBERS),
        _required("old_entropy", _NUMBERS),
        pa.field("ref_logp", _NUMBERS),
        *(pa.field(name, _TEXTS if name == "rule" else _NUMBERS) for name in _TRACE_COLUMNS),
        _required("reward", pa.float64()),
        _required("verifier_reward", pa.float64()),
        _required("overlong", pa.float64()),
        _required("bonus", pa.float64()),
        pa.field("failure", pa.string()),
        _required("advantage", pa.float64()),
        _required("stop_reason", pa.string()),
    ]
)
"""Columns of the file, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One response of a step as it was scored and trained on."""

    step: int
    prompt_index: int
    """Position of the prompt in the data set."""
    sample_index: int
    """Position in the prompt's group, from 0."""
    sample_id: int
    """Position in the step, from 0: with a token's position what keys the random choices."""
    policy_version: int
    """Weights that sampled it."""
    prompt_text: str
    response_text: str
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    token_text: tuple[str, ...] | None = None
    """Text of each response token alone; a token that is part of a character reads as U+FFFD."""
    behavior_logp: tuple[float, ...]
    """Per response token, from the engine when it sampled."""
    old_logp: tuple[float, ...]
    """Per response token, from the trainer before the step's first update."""
    old_entropy: tuple[float, ...]
    """Per response token, under the same weights, nats."""
    ref_logp: tuple[float, ...] | None
    """Per response token, from the reference weights; None: the run has no reference."""
    trace: TokenTrace | None = None
    """What the update did with each response token; None: the response was not traced, or has no tokens."""
    reward: float
    """verifier_reward, times reward.truncated_factor where cut off, + overlong + bonus: what the advantage saw."""
    verifier_reward: float
    """As the verifier gave it."""
    overlong: float
    """The penalty, at most 0."""
    bonus: float
    """That of objective.shaping.perplexity; 0 without."""
    failure: str | None
    """Why the verifier gave no answer: "timeout", "crash"; None: it answered."""
    advantage: float
    stop_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in _PER_TOKEN}
        if self.trace is not None:
            if self.trace.sample_id != self.sample_id:
                raise ValueError(
                    f"{self._name()} is sample {self.sample_id} of the step, its trace is of sample "
                    f"{self.trace.sample_id}"
                )
            columns |= {f"trace.{name}": getattr(self.trace, name) for name in _TRACE_COLUMNS.values()}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.response_tokens):
                raise ValueError(
                    f"{self._name()}: {len(self.response_tokens)} response tokens but {len(column)} entries in {name}"
                )

    def _name(self) -> str:
        return f"prompt {self.prompt_index}, sample {self.sample_index}"


_PER_TOKEN = ("token_text", "behavior_logp", "old_logp", "old_entropy", "ref_logp")
_OWN_COLUMNS = tuple(field.name for field in fields(RolloutRow) if field.name != "trace")


def write_rollouts(path: Path, rows: Iterable[RolloutRow]) -> None:
    """Write `rows` to `path`, whole or not at all; an existing file is replaced."""
    all_rows = list(rows)
    columns = {name: [getattr(row, name) for row in all_rows] for name in _OWN_COLUMNS}
    traces = [row.trace for row in all_rows]
    for name, field in _TRACE_COLUMNS.items():
        columns[name] = [None if trace is None else getattr(trace, field) for trace in traces]
    table = pa.table(columns, schema=SCHEMA)
    with replace_atomically(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_rollouts(path: Path, *, sample_ids: Collection[int] | None = None) -> list[RolloutRow]:
    """The rows of a file that `write_rollouts` made, in its order: all, or those of `sample_ids`. ValueError when its
    columns are others."""
    rows: list[RolloutRow] = []
    for batch in iterate_batches(path, SCHEMA.names):
        wanted = batch
        if sample_ids is not None:
            wanted = batch.filter(pc.is_in(batch["sample_id"], pa.array(sorted(sample_ids), pa.int32())))
        rows += [_row(columns) for columns in wanted.to_pylist()]
    return rows


def iterate_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows a few at a time, with these columns alone: a long step does not fit into memory as Python
    objects. ValueError when the file has other columns than `SCHEMA`."""
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if names != SCHEMA.names:
            raise ValueError(f"{path} has columns {names}, expected {SCHEMA.names}")
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns))


def _row(columns: dict[str, Any]) -> RolloutRow:
    cells: dict[str, Any] = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in columns.items()}
    traced = {field: cells.pop(name) for name, field in _TRACE_COLUMNS.items()}
    trace = None if traced["logp"] is None else TokenTrace(sample_id=cells["sample_id"], **traced)
    return RolloutRow(**cells, trace=trace)
