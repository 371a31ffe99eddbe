"""Rows of a file, a directory of files, or a hub data set: a sized sequence of plain dicts, read lazily where possible.

A directory never mixes splits: when any of its files is named after a split, only the asked split's files are read.
"""

import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megarl.config.base import ConfigError
from megarl.config.data import FileData

Row = Mapping[str, Any]
_SUFFIXES = (".jsonl", ".parquet")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-_.]|$)")


class Rows(Protocol):
    """What the layouts read: rows by slice, and where each one came from."""

    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop)."""

    def place(self, index: int) -> str:
        """File and row of `index`, for messages."""


class _ListRows:
    """Rows of JSON lines, held as they were parsed."""

    def __init__(self, rows: list[Row], places: list[tuple[Path, int]]) -> None:
        self._rows, self._places = rows, places
        self.columns = tuple(dict.fromkeys(key for row in rows for key in row))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> list[Row]:
        return self._rows[start:stop]

    def place(self, index: int) -> str:
        file, line = self._places[index]
        return f"{file} line {line}"


class _ArrowRows:
    """Rows of an Arrow table, converted when they are read."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name
        self.columns = tuple(table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def read(self, start: int, stop: int) -> list[Row]:
        return list(self._table.slice(start, stop - start).to_pylist())

    def place(self, index: int) -> str:
        return f"{self._name} row {index}"


def load_rows(config: FileData) -> Rows:
    """Rows of `config.path`; ConfigError when it is missing, unreadable or empty."""
    path = Path(config.path)
    if path.is_file():
        rows = _load_files([path])
    elif path.is_dir():
        rows = _load_files(_select_files(path / config.subset if config.subset else path, config.split))
    elif path.suffix not in _SUFFIXES and _HUB_NAME.fullmatch(config.path):
        rows = _load_hub(config)
    else:
        raise ConfigError(
            f"data.train.path {config.path}: expected a .jsonl or .parquet file, a directory of them, or a hub name "
            f"(owner/name); nothing is there (looked in {Path.cwd()})"
        )
    if not len(rows):
        raise ConfigError(f"data.train.path {config.path}: the data set is empty (split {config.split!r})")
    return rows


def _select_files(directory: Path, split: str) -> list[Path]:
    if not directory.is_dir():
        raise ConfigError(f"data.train.subset: expected a directory {directory}, found nothing")
    files = sorted(file for file in directory.iterdir() if file.suffix in _SUFFIXES)
    found = ", ".join(file.name for file in files) or "none"
    named = [file for file in files if _SPLIT_NAME.match(file.name)]
    if named:
        files = [file for file in files if re.match(rf"{re.escape(split)}(?=[-_.]|$)", file.name)]
    if not files:
        wanted = f" of split {split!r}" if named else ""
        raise ConfigError(f"data.train.path {directory}: expected .jsonl or .parquet files{wanted}, found {found}")
    if len({file.suffix for file in files}) > 1:
        raise ConfigError(f"data.train.path {directory}: both .jsonl and .parquet files ({found}); name one file")
    return files


def _load_files(files: list[Path]) -> Rows:
    if files[0].suffix == ".parquet":
        return _load_parquet(files)
    if files[0].suffix != ".jsonl":
        raise ConfigError(f"data.train.path {files[0]}: expected a name ending in .jsonl or .parquet")
    rows: list[Row] = []
    places: list[tuple[Path, int]] = []
    for file in files:
        for line, row in _read_json_lines(file):
            rows.append(row)
            places.append((file, line))
    return _ListRows(rows, places)


def _read_json_lines(file: Path) -> Iterable[tuple[int, Row]]:
    with file.open("rb") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file} line {line}: expected one JSON object per line ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{file} line {line}: expected a JSON object, found {type(row).__name__}")
            yield line, row


def _load_parquet(files: Sequence[Path]) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        tables = [pyarrow.parquet.read_table(file) for file in files]
        table = pyarrow.concat_tables(tables, promote_options="default")
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(
            f"data.train.path {', '.join(map(str, files))}: cannot be read as parquet ({error})"
        ) from error
    return _ArrowRows(table, str(files[0]) if len(files) == 1 else f"{files[0].parent}/*.parquet")


def _load_hub(config: FileData) -> Rows:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"data.train.path {config.path}: nothing on this machine has that path, and reading it as a hub name needs "
            "the package `datasets`; pip install datasets, or download the files and set the path to their directory"
        ) from error
    try:
        table = datasets.load_dataset(config.path, config.subset, split=config.split)
    except Exception as error:  # the hub client has no common base class for: offline, no such name, no such split
        raise ConfigError(
            f"data.train.path {config.path}: the hub gave no data set (subset {config.subset!r}, split "
            f"{config.split!r}): {type(error).__name__}: {error}\n"
            "without network, download the files elsewhere and set the path to their directory"
        ) from error
    return _ArrowRows(table.with_format("arrow")[:], config.path)
