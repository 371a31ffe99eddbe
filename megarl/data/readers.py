"""Reading data files batch by batch: JSON, CSV, Parquet, each plain or compressed.

Text is UTF-8, with or without a byte order mark. A row that cannot be read is a fault and the reading goes on; a file
that cannot be read is a ConfigError.
"""

import codecs
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megarl.config.base import ConfigError
from megarl.config.data_files import file_compression
from megarl.data.faults import Faults
from megarl.data.json_text import JsonTextError, decode, parse, parse_object
from megarl.data.rows import ArrowBatch, JsonBatch, Row

BATCH_ROWS = 131_072
"""Of Arrow data: large, because rows that repeat others are found batch by batch."""
_BATCH_BYTES = 128 * 2**20
_BATCH_LINES = 8192
_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def open_data(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """(the file's content, the file itself, whose position says how far it is read); decompressed by its ending."""
    with path.open("rb") as raw:
        codec = file_compression(path)
        if codec is None:
            yield raw, raw
        else:
            stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
            yield io.BufferedReader(stream, 2**20), raw


def read_json_lines(stream: BinaryIO, file: str, faults: Faults) -> Iterator[JsonBatch]:
    """One object a line; blank lines are left out."""
    numbers: list[int] = []
    rows: list[Row] = []
    texts: list[bytes] = []
    for number, line in _lines(stream, file):
        text = line.strip()
        if not text:
            continue
        try:
            rows.append(parse_object(text))
        except JsonTextError as error:
            faults.add(f"{file} line {number}", str(error))
            continue
        numbers.append(number)
        texts.append(text)
        if len(rows) == _BATCH_LINES:
            yield _json_batch(rows, texts, file=file, numbers=numbers, unit="line")
            numbers, rows, texts = [], [], []
    yield _json_batch(rows, texts, file=file, numbers=numbers, unit="line")


def read_json(stream: BinaryIO, file: str, faults: Faults, *, needed: Sequence[str]) -> Iterator[JsonBatch]:
    """An array of objects, an object with one such array, an object that is a row (it has the `needed` columns), or
    JSON lines under this name."""
    content = _without_mark(stream.read(), file)
    if not content.strip():
        return
    try:
        value = parse(decode(content))
    except JsonTextError as error:
        if _is_object(content.lstrip().partition(b"\n")[0]):
            yield from read_json_lines(io.BytesIO(content), file, faults)
            return
        raise ConfigError(f"{file}: expected an array of JSON objects: {error}") from None
    rows = []
    for number, item in enumerate(_items(value, file, needed)):
        if isinstance(item, dict):
            rows.append((number, item))
        else:
            faults.add(f"{file} row {number}", f"expected a JSON object, found {type(item).__name__}")
    for start in range(0, len(rows), _BATCH_LINES):
        part = rows[start : start + _BATCH_LINES]
        yield _json_batch([row for _, row in part], None, file=file, numbers=[n for n, _ in part], unit="row")


def read_csv(
    stream: BinaryIO, file: str, faults: Faults, *, delimiter: str, needed: Sequence[str]
) -> Iterator[ArrowBatch]:
    """A header and rows whose cells are text, as they stand; quotes may hold delimiters and line ends."""
    csv.field_size_limit(sys.maxsize)  # of the process; its default refuses a cell of more than 128 KiB
    reader = csv.reader((decode(line) for _, line in _lines(stream, file)), delimiter=delimiter, strict=True)
    last_line = 0
    header: list[str] | None = None
    numbers: list[int] = []
    rows: list[list[str]] = []
    try:
        for cells in reader:
            first_line, last_line = last_line + 1, reader.line_num
            if header is None:
                header = cells
            elif len(cells) == len(header):
                numbers.append(first_line)
                rows.append(cells)
            elif cells:
                faults.add(
                    f"{file} line {first_line}", f"expected {len(header)} cells as in the header, found {len(cells)}"
                )
            if header is not None and len(rows) == _BATCH_LINES:
                yield _text_batch(header, rows, file=file, numbers=numbers, needed=needed)
                numbers, rows = [], []
    except (csv.Error, JsonTextError) as error:
        faults.add(
            f"{file} line {last_line + 1}", f"not valid CSV: {error}" if isinstance(error, csv.Error) else str(error)
        )
    if header is not None:
        yield _text_batch(header, rows, file=file, numbers=numbers, needed=needed)


def read_parquet(path: Path, *, needed: Sequence[str]) -> Iterator[ArrowBatch]:
    """Batches of a Parquet file. Text of any Arrow type comes as large_string, lists as large_list."""
    with open_parquet(path) as file:
        size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        rows = int(np.clip(_BATCH_BYTES * file.metadata.num_rows // max(size, 1), 64, BATCH_ROWS))
        start = 0
        for batch in file.iter_batches(batch_size=rows):
            yield arrow_batch(batch, file=str(path), start=start, needed=needed)
            start += batch.num_rows


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file, decompressed into memory where its ending says so. ConfigError when it is not Parquet."""
    try:
        with open_data(path) as (stream, raw):
            source: Any = path if stream is raw else pa.BufferReader(stream.read())
            with pq.ParquetFile(source) as file:
                yield file
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as parquet ({error})") from error


def arrow_batch(batch: pa.RecordBatch, *, file: str, start: int, needed: Sequence[str]) -> ArrowBatch:
    """The batch's rows; `start` is the number of its first one."""
    kept = _own_columns(batch.schema.names, file, needed)
    fields = [batch.schema.field(position) for position in kept]
    arrays = [
        batch.column(position).cast(_plain(field.type, f"{file}: column {field.name!r}"))
        for position, field in zip(kept, fields, strict=True)
    ]
    plain = pa.RecordBatch.from_arrays(arrays, names=[field.name for field in fields])
    return ArrowBatch(plain, file=file, numbers=np.arange(start, start + batch.num_rows))


def _plain(kind: Any, where: str) -> Any:
    """The type without what depends on the writer: 32-bit offsets, views, dictionaries."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type, where)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if len(set(names)) < len(names):
            raise ConfigError(f"{where}: a struct with two fields of one name ({', '.join(names)}); rename one")
        return pa.struct([(field.name, _plain(field.type, where)) for field in kind])
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if any(is_list(kind) for is_list in lists):
        return pa.large_list(_plain(kind.value_type, where))
    return kind


def _text_batch(
    header: list[str], rows: list[list[str]], *, file: str, numbers: list[int], needed: Sequence[str]
) -> ArrowBatch:
    kept = _own_columns(header, file, needed)
    arrays = [pa.array([cells[position] for cells in rows], pa.large_string()) for position in kept]
    batch = pa.RecordBatch.from_arrays(arrays, names=[header[position] for position in kept])
    return ArrowBatch(batch, file=file, numbers=np.asarray(numbers, dtype=np.int64), unit="line")


def _own_columns(names: Sequence[str], file: str, needed: Sequence[str]) -> list[int]:
    """Positions of the columns with a name of their own; ConfigError when a needed one has not."""
    twice = [name for name in needed if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{file}: column {twice[0]!r} is there {names.count(twice[0])} times; rename the others")
    return [position for position, name in enumerate(names) if names.count(name) == 1]


def _json_batch(
    rows: Sequence[Row], texts: Sequence[bytes] | None, *, file: str, numbers: Sequence[int], unit: str
) -> JsonBatch:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return JsonBatch(rows, texts=texts, columns=columns, file=file, numbers=numbers, unit=unit)


def _items(value: Any, file: str, needed: Sequence[str]) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if all(name in value for name in needed):
            return [value]
        lists = {key: items for key, items in value.items() if isinstance(items, list) and _holds_objects(items)}
        if len(lists) == 1:
            return next(iter(lists.values()))
        found = f"an object with keys {', '.join(list(value)[:8])}"
    else:
        found = type(value).__name__
    raise ConfigError(
        f"{file}: expected an array of objects, an object with one such array, or one object a line; found {found}"
    )


def _holds_objects(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line)
    except JsonTextError:
        return False
    return True


def _lines(stream: BinaryIO, file: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, start=1):
        yield number, _without_mark(line, file) if number == 1 else line


def _without_mark(start: bytes, file: str) -> bytes:
    if start.startswith(_WIDE_MARKS):
        raise ConfigError(f"{file}: expected UTF-8, found UTF-16 or UTF-32; convert it, e.g. with iconv -t UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)
