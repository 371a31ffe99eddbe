"""NAME.parquet: every answer to a benchmark, and how a half-made file goes on.

One row per response, by problem and sample:

| column | what |
|---|---|
| problem, sample | position of the problem in the data set; of the response among the problem's, from 0 |
| prompt, truth | the rendered prompt, and the ground truth |
| text, tokens, truncated | the response, its length, and whether it was cut off at the limit |
| correct, score, failure | the verdict, the verifier's number, why it gave none (null: it did) |
| answer | what the response says its answer is, equal texts being one answer (maj@k); null: nothing |
| mean_logp | mean log-prob per token, of the distribution that was sampled from; null: no token |

The file's metadata has what determines the answers (`settings`). While an evaluation runs, its answers are in
NAME.parts/, whole problems in each file; when all are there they become NAME.parquet, sorted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megarl.telemetry.atomic_file import remove_tree, replace_atomically

Settings = Mapping[str, Any]
"""JSON-able."""

_KEY = b"megarl.evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response; see the module."""

    problem: int
    sample: int
    prompt: str
    truth: str
    text: str
    tokens: int
    truncated: bool
    correct: bool
    score: float
    failure: str | None
    answer: str | None
    mean_logp: float | None


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        _required("problem", pa.int64()),
        _required("sample", pa.int32()),
        _required("prompt", pa.string()),
        _required("truth", pa.string()),
        _required("text", pa.string()),
        _required("tokens", pa.int32()),
        _required("truncated", pa.bool_()),
        _required("correct", pa.bool_()),
        _required("score", pa.float64()),
        pa.field("failure", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("mean_logp", pa.float64()),
    ]
)


class AnswersFile:
    """The answers to one benchmark below `directory`. Used from one thread at a time."""

    def __init__(self, directory: Path, name: str, settings: Settings) -> None:
        self.path = directory / f"{name}.parquet"
        self._parts = directory / f"{name}.parts"
        self.settings: Settings = json.loads(json.dumps(settings))
        """What determines the answers, as it is read back."""

    def found_settings(self) -> Settings | None:
        """What determined the answers that are there, all or some of them; None: there are none."""
        for path in (self.path, *self._part_paths()):
            if path.is_file():
                return read_settings(path)
        return None

    @property
    def is_complete(self) -> bool:
        return self.path.is_file()

    def clear(self) -> None:
        """Remove what an evaluation left that was not complete."""
        if self._parts.is_dir():
            remove_tree(self._parts)

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep the answers to some problems, all that there are to each."""
        self._parts.mkdir(parents=True, exist_ok=True)
        number = max((_number(path) for path in self._part_paths()), default=0) + 1
        self._write(self._parts / f"{number:06d}.parquet", _table(answers))

    def problems(self) -> set[int]:
        """Those that are answered so far."""
        found: set[int] = set()
        for path in self._part_paths():
            found.update(pq.read_table(path, columns=["problem"])["problem"].to_pylist())
        return found

    def finish(self, *, problems: int) -> None:
        """Every problem is answered: make the file. RuntimeError where there are not so many."""
        if (found := len(self.problems())) != problems:
            raise RuntimeError(f"{self._parts} has answers to {found} problems, expected {problems}")
        parts = [pq.read_table(path) for path in self._part_paths()]
        table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
        self._write(self.path, table.sort_by([("problem", "ascending"), ("sample", "ascending")]))
        self.clear()

    def _part_paths(self) -> list[Path]:
        if not self._parts.is_dir():
            return []
        return sorted(path for path in self._parts.iterdir() if re.fullmatch(r"\d+\.parquet", path.name))

    def _write(self, path: Path, table: pa.Table) -> None:
        metadata = {_KEY: json.dumps(self.settings).encode()}
        with replace_atomically(path) as partial:
            pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")


def read_settings(path: Path) -> Settings:
    """What determined the answers of a file. ValueError where it is none of ours."""
    metadata = pq.read_schema(path).metadata or {}
    if _KEY not in metadata:
        raise ValueError(f"{path} has no settings of an evaluation: it is no file of answers that megarl wrote")
    found: Settings = json.loads(metadata[_KEY])
    return found


def find_other_settings(found: Settings, wanted: Settings, *, but: Sequence[str] = ()) -> list[str]:
    """Where answers were given under other settings than wanted, `but` for some: "samples 8, not 16"."""
    keys = [key for key in wanted if key not in but]
    return [f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in keys if found.get(key) != wanted[key]]


def read_answers(path: Path) -> pa.Table:
    """The rows of a complete file. ValueError where its columns are others, or a problem lacks a sample."""
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path} has columns {table.schema.names}, expected {SCHEMA.names}")
    counts = set(pc.value_counts(table["problem"]).field("counts").to_pylist())
    if len(counts) != 1:
        raise ValueError(f"{path} has {sorted(counts)} answers to a problem, expected equally many to each")
    return table


def _number(path: Path) -> int:
    return int(path.stem)


def _table(answers: Sequence[Answer]) -> pa.Table:
    columns = {one.name: [getattr(answer, one.name) for answer in answers] for one in fields(Answer)}
    return pa.table([pa.array(columns[one.name], one.type) for one in SCHEMA], schema=SCHEMA)
