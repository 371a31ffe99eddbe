"""A finished ablation as a repository keeps it: NAME.parquet, small, with everything that a document says of it.

    NAME.parquet          cell, setting, seed, step, metric, value, as table.parquet has them, of finished runs, cut to
                          the metrics that documents and figures read; values are float32
    NAME.updates.parquet  cell, step, update, and a column for each number of an update; null where there is none

The schema's metadata `megarl.ablation` of the first is the JSON of `Facts`: what was run, of which model, for how long.
No file has a path of the machine that ran it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from megarl.ablation.directory import decode_infinities, encode_infinities
from megarl.telemetry.atomic_file import replace_atomically

VERSION = 1
METADATA = b"megarl.ablation"
SUFFIX = ".parquet"
UPDATES_SUFFIX = ".updates.parquet"
COLUMNS = ("cell", "setting", "seed", "step", "metric", "value")
UPDATE_KEYS = ("cell", "step", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSetting:
    """What was compared."""

    name: str
    about: str
    control: str | None
    """The setting it is compared with; None: it is the control, or there is none."""
    fragments: tuple[str, ...]
    """Laid over the base, as configs/ has them."""
    overrides: Mapping[str, Any]
    """Dotted path -> value, that set the setting apart; infinities are floats."""
    config: Mapping[str, Any]
    """Dotted path -> value of what its runs' configurations have other than `Facts.config`."""
    seeds: tuple[int, ...]
    """Of finished runs."""
    planned: int
    """Seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of the whole ablation."""

    name: str
    about: str
    control: str | None
    command: str | None
    """That runs it again from the repository; None: its file is none of the repository's."""
    settings: tuple[StoredSetting, ...]
    steps: tuple[int, ...]
    """That its runs have, each number once."""
    run_seconds: float
    """Of all finished runs together."""
    wall_seconds: float
    """From the first process's beginning to the last one's end, the warm start included."""
    model: Mapping[str, Any]
    """name, warm_steps (0: none), parameters, layers, hidden_size, vocab_size, and what else describes it."""
    optimizer: Mapping[str, Any]
    """policy.optimizer of the runs; a field that settings differ in is in their `config`."""
    config: Mapping[str, Any]
    """Dotted path -> value, which all runs share; without names and places."""
    versions: Mapping[str, Any]
    """python, cpus, memory_gib, packages, revisions of megarl."""
    left_out: Mapping[str, str]
    """Cell -> why, of those that are not finished."""
    over_problems: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Setting -> mean@n and pass@n of its last evaluation -> {"value": {low, high, n}, "difference": the same or null}:
    the bootstrap intervals over n problems of summary.json, of the measure and of its difference to the control."""

    def as_json(self) -> dict[str, Any]:
        return {"version": VERSION, **encode_infinities(asdict(self))}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The reverse. ValueError where it is none, or of another version of megarl."""
        if found.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION} of a stored ablation, found {found.get('version')!r}")
        facts = decode_infinities({key: value for key, value in found.items() if key != "version"})
        try:
            settings = tuple(StoredSetting(**_with_tuples(StoredSetting, one)) for one in facts.pop("settings"))
            return cls(settings=settings, **_with_tuples(cls, facts))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected what an ablation is; {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class StoredAblation:
    """The two tables with their facts."""

    facts: Facts
    table: pa.Table
    updates: pa.Table | None = None
    """None: NAME.updates.parquet is not there."""

    @cached_property
    def cells(self) -> dict[str, tuple[str, int]]:
        """Cell -> (setting, seed), in the table's order."""
        rows = self.table.select(["cell", "setting", "seed"]).group_by(["cell", "setting", "seed"], use_threads=False)
        found = rows.aggregate([]).to_pydict()
        return {
            cell: (setting, seed)
            for cell, setting, seed in zip(found["cell"], found["setting"], found["seed"], strict=True)
        }

    def setting(self, name: str) -> StoredSetting:
        """KeyError where there is none of this name."""
        return {one.name: one for one in self.facts.settings}[name]


def updates_path(path: Path) -> Path:
    """Of the updates of a stored table."""
    return path.with_name(path.name.removesuffix(SUFFIX) + UPDATES_SUFFIX)


def is_stored(path: Path) -> bool:
    """Whether this is named as a stored table is; `read_stored` looks into it."""
    return path.suffix == SUFFIX and not path.is_dir()


def read_stored(path: Path) -> StoredAblation:
    """FileNotFoundError where it is not there; ValueError, naming the file, where it is no stored table."""
    if path.name.endswith(UPDATES_SUFFIX):
        named = path.name.removesuffix(UPDATES_SUFFIX) + SUFFIX
        raise ValueError(f"{path} has updates alone; expected the table beside it, {named}")
    table = _read(path, COLUMNS)
    text = (table.schema.metadata or {}).get(METADATA)
    if text is None:
        raise ValueError(
            f"{path} does not say what was run; expected a table that tools/store_results.py made of an ablation's "
            "directory (an ablation's own table.parquet: give its directory)"
        )
    try:
        facts = Facts.from_json(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    beside = updates_path(path)
    return StoredAblation(facts=facts, table=table, updates=_read(beside, UPDATE_KEYS) if beside.is_file() else None)


def write_stored(path: Path, stored: StoredAblation) -> None:
    """Replace both files, each whole; without updates the second goes."""
    text = json.dumps(stored.facts.as_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    _write(path, stored.table.replace_schema_metadata({METADATA: text.encode()}))
    if stored.updates is None:
        updates_path(path).unlink(missing_ok=True)
    else:
        _write(updates_path(path), stored.updates)


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a table that tools/store_results.py made")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {str(error).splitlines()[0]}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected {', '.join(columns)}")
    return table


def _write(path: Path, table: pa.Table) -> None:
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [field.name for field in table.schema if field.name not in numbers]
    with replace_atomically(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            compression_level=19,
            use_dictionary=others,
            column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
            write_statistics=False,
        )


def _with_tuples(of: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where `of` declares tuples."""
    is_tuple = {field.name: str(field.type).startswith("tuple") for field in fields(of)}
    return {key: tuple(value) if is_tuple.get(key) else value for key, value in facts.items()}
