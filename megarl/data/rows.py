"""Rows of a table's files, held as they came and converted when they are read.

Arrow data stays Arrow and JSON lines stay text: a plain Python row takes several times their memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from megarl.data.json_text import parse_object

Row = Mapping[str, Any]
Positions = Sequence[int] | np.ndarray
_ABSENT = object()


class Batch(Protocol):
    """Some rows of one file, by position."""

    file: str
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, positions: Positions) -> list[Row]:
        """These rows, in the order asked for."""

    def keep(self, positions: Positions) -> "Batch":
        """A batch of these rows alone."""

    def place(self, position: int) -> str:
        """File and row, for messages."""

    def has(self, path: str) -> bool:
        """Whether a column is there, or where a dot goes into a struct, its field."""

    def arrays(self, paths: Sequence[str]) -> list[pa.Array]:
        """These columns' values in Arrow, to be compared; empty where the rows are none."""


class ArrowBatch:
    """Rows of an Arrow record batch."""

    def __init__(self, batch: pa.RecordBatch, *, file: str, numbers: np.ndarray, unit: str = "row") -> None:
        """numbers: what the rows are called in messages, counted in `unit`s."""
        self.file, self.columns = file, tuple(batch.schema.names)
        self._batch, self._numbers, self._unit = batch, numbers, unit

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def take(self, positions: Positions) -> list[Row]:
        return list(self._batch.take(pa.array(positions, pa.int64())).to_pylist())

    def keep(self, positions: Positions) -> "ArrowBatch":
        if len(positions) == len(self):
            return self
        kept = self._batch.take(pa.array(positions, pa.int64()))
        numbers = self._numbers[np.asarray(positions, dtype=np.int64)]
        return ArrowBatch(kept, file=self.file, numbers=numbers, unit=self._unit)

    def place(self, position: int) -> str:
        return f"{self.file} {self._unit} {self._numbers[position]}"

    def has(self, path: str) -> bool:
        return self._find(path) is not None

    def arrays(self, paths: Sequence[str]) -> list[pa.Array]:
        return [array for path in paths if (array := self._find(path)) is not None]

    def _find(self, path: str) -> pa.Array | None:
        if path in self.columns:
            return self._batch.column(path)
        root, *keys = path.split(".")
        array = self._batch.column(root) if root in self.columns else None
        for key in keys:
            if array is None or not pa.types.is_struct(array.type) or array.type.get_field_index(key) < 0:
                return None
            array = array.flatten()[array.type.get_field_index(key)]
        return array


class JsonBatch:
    """JSON objects, parsed or as the text of their lines."""

    def __init__(
        self,
        items: Sequence[Row | bytes],
        *,
        columns: tuple[str, ...],
        file: str,
        numbers: Sequence[int],
        unit: str,
        texts: Sequence[bytes] | None = None,
    ) -> None:
        """numbers: what the rows are called in messages, in `unit`s. texts: what `keep` keeps in their place."""
        self.file, self.columns = file, columns
        self._items, self._texts, self._numbers, self._unit = items, texts or items, numbers, unit

    def __len__(self) -> int:
        return len(self._items)

    def take(self, positions: Positions) -> list[Row]:
        found = (self._items[position] for position in positions)
        return [parse_object(item) if isinstance(item, bytes) else item for item in found]

    def keep(self, positions: Positions) -> "JsonBatch":
        return JsonBatch(
            [self._texts[position] for position in positions],
            columns=self.columns,
            file=self.file,
            numbers=[self._numbers[position] for position in positions],
            unit=self._unit,
        )

    def place(self, position: int) -> str:
        return f"{self.file} {self._unit} {self._numbers[position]}"

    def has(self, path: str) -> bool:
        return any(pick(row, path, _ABSENT) is not _ABSENT for row in self.take(range(len(self))))

    def arrays(self, paths: Sequence[str]) -> list[pa.Array]:
        del paths
        return []


class RowSet:
    """The rows of several batches, one after the other."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = [batch for batch in batches if len(batch)]
        self._starts = np.cumsum([0, *map(len, self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indexes: Positions) -> list[Row]:
        """These rows, in the order asked for."""
        wanted = np.asarray(indexes, dtype=np.int64)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        rows: list[Row] = [{}] * len(wanted)
        for owner in np.unique(owners):
            where = np.flatnonzero(owners == owner)
            for target, row in zip(where, self._batches[owner].take(wanted[where] - self._starts[owner]), strict=True):
                rows[target] = row
        return rows

    def place(self, index: int) -> str:
        """File and row, for messages."""
        owner = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[owner].place(index - int(self._starts[owner]))

    def without(self, indexes: Sequence[int]) -> "RowSet":
        """The others, in order."""
        gone = np.zeros(len(self), dtype=bool)
        gone[list(indexes)] = True
        parts = zip(self._batches, np.split(~gone, self._starts[1:-1]), strict=True)
        return RowSet([batch.keep(np.flatnonzero(left)) for batch, left in parts])


def pick(row: Row, path: str, absent: Any = None) -> Any:
    """The value of a column, or where no column has that name and it has a dot, of a field in a struct."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return absent
        value = value[key]
    return value


def remove(row: dict[str, Any], path: str) -> None:
    """Take what `pick` gives out of the row; a struct that is left empty goes too. Structs are copied, not changed."""
    if path in row:
        del row[path]
        return
    root, _, rest = path.partition(".")
    inner = row.get(root)
    if rest and isinstance(inner, Mapping):
        left = dict(inner)
        remove(left, rest)
        row[root] = left
        if not left:
            del row[root]
