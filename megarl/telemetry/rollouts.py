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

Log-probs are natural logarithms and entropies nats; numbers per token are float32. The rules are those of `rules.Rule`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from megarl.records import (
    ArrayRecord,
    Floats,
    TokenIds,
    TokenTrace,
    check_lengths,
    column,
    columns_of,
    group_by_tokens,
    settle,
)
from megarl.rules import rule_flags, rule_names
from megarl.telemetry.atomic_file import replace_atomically


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutRow(ArrayRecord):
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
    prompt_tokens: TokenIds
    response_tokens: TokenIds
    token_text: tuple[str, ...] | None = None
    """Text of each response token alone; a token that is part of a character reads as U+FFFD."""
    behavior_logp: Floats = column("float32", per="token")
    """Per response token, from the engine when it sampled."""
    old_logp: Floats = column("float32", per="token")
    """Per response token, from the trainer before the step's first update."""
    old_entropy: Floats = column("float32", per="token")
    """Per response token, under the same weights, nats."""
    ref_logp: Floats | None = column("float32", per="token")
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
        settle(self, tokens=("prompt_tokens", "response_tokens"))
        name, count = f"prompt {self.prompt_index}, sample {self.sample_index}", len(self.response_tokens)
        check_lengths(self, count, whose=name)
        if self.token_text is not None and len(self.token_text) != count:
            raise ValueError(f"{name}: {count} response tokens but {len(self.token_text)} entries in token_text")
        if self.trace is None:
            return
        if self.trace.sample_id != self.sample_id:
            raise ValueError(
                f"{name} is sample {self.sample_id} of the step, its trace is of sample {self.trace.sample_id}"
            )
        check_lengths(self.trace, count, whose=f"{name}, trace")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TOKENS = pa.list_(_required("element", pa.int32()))
_NUMBERS = pa.list_(_required("element", pa.float32()))
_TEXTS = pa.list_(_required("element", pa.dictionary(pa.int32(), pa.string())))

_ROWS_AT_ONCE = 64
_TOKENS_OF_A_GROUP = 1 << 20
"""Response tokens that are written at once: what writing needs in memory does not grow with the step."""

_VALUES_AT_ONCE = 1 << 16
"""Values of a column that are encoded together: parquet's own 1,024 take it a sixth longer."""

_TRACE_COLUMNS = {
    "token_advantage" if one.name == "advantage" else one.name: one.name for one in columns_of(TokenTrace)
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
        *(pa.field(one.name, _NUMBERS, nullable=one.name == "ref_logp") for one in columns_of(RolloutRow)),
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

_FLOATS = [f"{one.name}.list.element" for one in SCHEMA if one.type == _NUMBERS]
_SCALARS = [one.name for one in SCHEMA if not pa.types.is_list(one.type)]
_CODED = [
    *("prompt_text", "failure", "stop_reason"),
    *(f"{one.name}.list.element" for one in SCHEMA if one.type in (_TOKENS, _TEXTS)),
]


RolloutColumns = Mapping[str, Sequence[Any]]
"""The fields of `RolloutRow` by name, an entry per response in each: as many objects less as there are responses."""


def write_rollouts(path: Path, columns: RolloutColumns) -> None:
    """Write the rows of `columns` to `path`, whole or not at all; an existing file is replaced.

    Log-probs hardly repeat, so a dictionary of them would only cost time; their bytes are sorted by significance, which
    compresses better. A part is put together while the one before it is written.

    Raises:
        ValueError: a column has not an entry for each response, or for each of its tokens.
    """
    with (
        replace_atomically(path) as partial,
        pq.ParquetWriter(
            partial,
            SCHEMA,
            compression="zstd",
            use_dictionary=_CODED,
            use_byte_stream_split=_FLOATS,
            # Of tokens they would say nothing: rows are found by their numbers.
            write_statistics=_SCALARS,
            write_batch_size=_VALUES_AT_ONCE,
        ) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="rollouts") as thread,
    ):
        writing: Future[None] | None = None
        for rows in _parts(columns):
            table = _table({name: values[rows] for name, values in columns.items()})
            if writing is not None:
                writing.result()
            writing = thread.submit(writer.write_table, table)
        if writing is not None:
            writing.result()


def _parts(columns: RolloutColumns) -> Iterator[slice]:
    """The rows in groups of about as many response tokens."""
    expected = [one.name for one in fields(RolloutRow)]
    counts = {name: len(columns.get(name, ())) for name in {*expected, *columns}}
    if set(counts) != set(expected) or len(set(counts.values())) > 1:
        raise ValueError(f"columns of rollouts have {counts} entries, expected equally many of each of {expected}")
    responses = columns["response_tokens"]
    start = 0
    for group in group_by_tokens(responses, len, at_least=_TOKENS_OF_A_GROUP):
        yield slice(start, start + len(group))
        start += len(group)


def _table(columns: RolloutColumns) -> pa.Table:
    lengths = [len(tokens) for tokens in columns["response_tokens"]]
    traces = columns["trace"]
    arrays = []
    for one in SCHEMA:
        if (field := _TRACE_COLUMNS.get(one.name)) is not None:
            cells: Sequence[Any] = [None if trace is None else getattr(trace, field) for trace in traces]
        else:
            cells = columns[one.name]
        if pa.types.is_list(one.type):
            if one.name != "prompt_tokens":
                _check_lengths(one.name, cells, lengths, sample_ids=columns["sample_id"])
            arrays.append(_lists(cells, one.type, _VALUES_OF.get(one.name, _values)))
        else:
            arrays.append(pa.array(cells, one.type))
    return pa.table(arrays, schema=SCHEMA)


def _check_lengths(name: str, cells: Sequence[Any], lengths: Sequence[int], *, sample_ids: Sequence[int]) -> None:
    """ValueError where a cell that is no null has not as many entries as its response has tokens."""
    for cell, length, sample_id in zip(cells, lengths, sample_ids, strict=True):
        if cell is not None and len(cell) != length:
            raise ValueError(f"sample {sample_id}: {length} response tokens but {len(cell)} entries in {name}")


def _lists(
    cells: Sequence[Any], kind: pa.ListType, values_of: Callable[[Sequence[Any], pa.DataType], pa.Array]
) -> pa.Array:
    """A list column, `values_of` the cells that there are one after the other; None is null."""
    given = [cell for cell in cells if cell is not None]
    offsets = np.cumsum([0, *(0 if cell is None else len(cell) for cell in cells)], dtype=np.int32)
    absent = None if len(given) == len(cells) else pa.array([cell is None for cell in cells])
    return pa.ListArray.from_arrays(pa.array(offsets), values_of(given, kind.value_type), type=kind, mask=absent)


def _values(cells: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    return pa.array(np.concatenate(cells) if cells else [], kind)


def _texts(cells: Sequence[Sequence[str]], kind: pa.DataType) -> pa.Array:
    return pa.array(list(chain.from_iterable(cells)), kind.value_type).dictionary_encode()


def _names_of_rules(cells: Sequence[NDArray[np.int32]], kind: pa.DataType) -> pa.Array:
    flags, codes = np.unique(np.concatenate(cells) if cells else [], return_inverse=True)
    names = pa.array([rule_names(int(found)) for found in flags], kind.value_type)
    return pa.DictionaryArray.from_arrays(pa.array(codes, kind.index_type), names)


_VALUES_OF: dict[str, Callable[[Sequence[Any], pa.DataType], pa.Array]] = {
    "token_text": _texts,
    "rule": _names_of_rules,
}
"""Columns that a row has not as numbers, or the file not."""


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
    cells = dict(columns)
    traced = {field: cells.pop(name) for name, field in _TRACE_COLUMNS.items()}
    trace = None
    if traced["logp"] is not None:
        traced["rule"] = [rule_flags(names) for names in traced["rule"]]
        trace = TokenTrace(sample_id=cells["sample_id"], **traced)
    if cells["token_text"] is not None:
        cells["token_text"] = tuple(cells["token_text"])
    return RolloutRow(**cells, trace=trace)
