"""The rows of a data set: files in one of several formats, or a data set of the Hugging Face hub."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.config.data_files import file_format, find_data_files
from megarl.data.faults import Faults
from megarl.data.readers import (
    BATCH_ROWS,
    arrow_batch,
    open_data,
    open_parquet,
    read_csv,
    read_json,
    read_json_lines,
    read_parquet,
)
from megarl.data.rows import Batch

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Table:
    """A data set that is read once, from its start to its end."""

    batches: Iterator[tuple[Batch, int]]
    """Rows, and how much of `total` is read with them."""
    total: int
    unit: str


def open_table(config: FileData, faults: Faults) -> Table:
    """The rows of `config.path`; a ConfigError, now or later, where something is missing or unreadable.

    Rows that cannot be read go to `faults`, for the caller to raise.
    """
    files = find_data_files(config)
    needed = tuple(dict.fromkeys(path.partition(".")[0] for path in config.sources().values()))
    if not files:
        return _open_hub(config, needed)
    if all(file_format(file) == "parquet" for file in files):
        return Table(batches=_parquet_batches(files, needed), total=sum(map(_count_rows, files)), unit="rows read")
    total = sum(file.stat().st_size for file in files) // _MIB
    return Table(batches=_measured_batches(files, faults, needed), total=total, unit="MiB read")


def _parquet_batches(files: list[Path], needed: tuple[str, ...]) -> Iterator[tuple[Batch, int]]:
    for file in files:
        for batch in read_parquet(file, needed=needed):
            yield batch, len(batch)


def _measured_batches(files: list[Path], faults: Faults, needed: tuple[str, ...]) -> Iterator[tuple[Batch, int]]:
    """Batches of any format, measured by the files' bytes."""
    before = reported = 0
    for file in files:
        for batch, position in _positioned_batches(file, faults, needed):
            amount = (before + position) // _MIB - reported
            reported += amount
            yield batch, amount
        before += file.stat().st_size


def _positioned_batches(file: Path, faults: Faults, needed: tuple[str, ...]) -> Iterator[tuple[Batch, int]]:
    """Batches of a file, each with the position in the file after it."""
    name, size = str(file), file.stat().st_size
    if file_format(file) == "parquet":
        yield from ((batch, size) for batch in read_parquet(file, needed=needed))
        return
    try:
        with open_data(file) as (stream, raw):
            batches: Iterator[Batch]
            match file_format(file):
                case "json lines":
                    batches = read_json_lines(stream, name, faults)
                case "json":
                    batches = read_json(stream, name, faults, needed=needed)
                case kind:
                    delimiter = "\t" if kind == "tsv" else ","
                    batches = read_csv(stream, name, faults, delimiter=delimiter, needed=needed)
            for batch in batches:
                yield batch, raw.tell()
    except OSError as error:  # also what Arrow raises for a damaged compressed file
        raise ConfigError(f"{file}: cannot be read ({error})") from error


def _count_rows(file: Path) -> int:
    with open_parquet(file) as opened:
        return int(opened.metadata.num_rows)


def _open_hub(config: FileData, needed: tuple[str, ...]) -> Table:
    name = config.path if isinstance(config.path, str) else config.path[0]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"data.train.path {name}: nothing on this machine has that path, and reading it as a hub name needs "
            "the package `datasets`; pip install datasets, or download the files and set the path to their directory"
        ) from error
    try:
        table = datasets.load_dataset(name, config.subset, split=config.split).with_format("arrow")[:]
    except Exception as error:  # the hub client has no common base class for: offline, no such name, no such split
        raise ConfigError(
            f"data.train.path {name}: the hub gave no data set (subset {config.subset!r}, split "
            f"{config.split!r}): {type(error).__name__}: {error}\n"
            "without network, download the files elsewhere and set the path to their directory"
        ) from error

    def batches() -> Iterator[tuple[Batch, int]]:
        start = 0
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            yield arrow_batch(batch, file=name, start=start, needed=needed), batch.num_rows
            start += batch.num_rows

    return Table(batches=batches(), total=int(table.num_rows), unit="rows read")
