"""Problems of data files: every row converted once at load, rows that repeat a problem counted or collapsed.

Of 1.8 million rows with 17 thousand problems few are ever made into Python objects: equal rows are found in Arrow.
"""

import difflib
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.data.duplicates import Copies, problem_key
from megarl.data.faults import Faults
from megarl.data.layouts import LAYOUTS, Fields, RowError
from megarl.data.problem import Problem
from megarl.data.progress import Listener, Progress
from megarl.data.row_codes import SeenRows
from megarl.data.rows import Batch, RowSet
from megarl.data.tables import open_table

logger = logging.getLogger(__name__)
_CHUNK_ROWS = 4096
"""Rows converted between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What is found out while the rows are read."""

    faults: Faults
    progress: Progress
    copies: Copies = field(default_factory=Copies)
    seen: SeenRows = field(default_factory=SeenRows)


class TableProblems:
    """Problems of a table in a published schema. Every row is converted once here, so that reading cannot fail."""

    def __init__(self, config: FileData, listen: Listener | None) -> None:
        self._config, self._sources = config, config.sources()
        self._convert = LAYOUTS[config.layout]
        faults = Faults()
        table = open_table(config, faults)
        reading = _Reading(faults=faults, progress=Progress(table.unit, table.total, listen))
        kept: list[Batch] = []
        numbers: list[np.ndarray] = []
        for batch, amount in table.batches:
            if len(batch):
                if not kept or kept[-1].file != batch.file:
                    self._check_columns(batch)
                known = len(reading.copies)
                numbers.append(self._number_rows(batch, reading))
                kept.append(batch.keep(self._kept_rows(numbers[-1], known)))
            reading.progress.advance(amount)
        faults.raise_any()
        if not kept:
            raise ConfigError(f"data.train.path {config.path}: the data set is empty (split {config.split!r})")
        self._rows = RowSet(kept)
        self.first_of = _first_of(np.concatenate(numbers))
        self._judge_copies(reading.copies, num_read=len(self.first_of))

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indexes: Sequence[int]) -> list[Problem]:
        return [self._convert(Fields(row, self._sources)) for row in self._rows.take(indexes)]

    def read(self, start: int, stop: int) -> list[Problem]:
        return self.take(range(start, stop))

    def place(self, index: int) -> str:
        return self._rows.place(index)

    def _number_rows(self, batch: Batch, reading: _Reading) -> np.ndarray:
        """The number of every row's problem; -1 where it is none, which is a fault."""
        arrays = batch.arrays(tuple(self._sources.values()))
        number_new = functools.partial(self._number_new, batch, reading)
        return reading.seen.number(arrays, number_new) if arrays else number_new(np.arange(len(batch)))

    def _number_new(self, batch: Batch, reading: _Reading, positions: np.ndarray) -> np.ndarray:
        numbers = np.full(len(positions), -1, dtype=np.int64)
        for start in range(0, len(positions), _CHUNK_ROWS):
            chunk = positions[start : start + _CHUNK_ROWS].tolist()
            for offset, (position, row) in enumerate(zip(chunk, batch.take(chunk), strict=True), start=start):
                try:
                    problem = self._convert(Fields(row, self._sources))
                    key = problem_key(problem.messages)
                    problem.solution.encode("utf-8")
                except RowError as error:
                    reading.faults.add(batch.place(position), str(error))
                except UnicodeEncodeError:
                    reading.faults.add(batch.place(position), "text with half a surrogate pair, which is no UTF-8")
                else:
                    place = functools.partial(batch.place, position)
                    numbers[offset] = reading.copies.add(key, problem.answer, place=place)
            reading.progress.advance(0)
        return numbers

    def _kept_rows(self, numbers: np.ndarray, known: int) -> np.ndarray:
        """Positions of the rows to keep of a batch before which `known` problems were known."""
        if self._config.duplicates == "keep":
            return np.arange(len(numbers))
        found, first = np.unique(numbers, return_index=True)
        return np.sort(first[found >= known])

    def _check_columns(self, batch: Batch) -> None:
        missing = [path for path in self._sources.values() if not batch.has(path)]
        if not missing:
            return
        expected, found = ", ".join(self._sources.values()), ", ".join(batch.columns)
        hints = [f"; {path}: did you mean {near}?" for path in missing if (near := _near(path, batch.columns))]
        raise ConfigError(
            f"{batch.file}: layout {self._config.layout!r} expects columns {expected}; missing {', '.join(missing)}, "
            f"found {found}; choose another data.train.layout, or name the file's columns in data.train.columns"
            f"{''.join(hints)}"
        )

    def _judge_copies(self, copies: Copies, *, num_read: int) -> None:
        """Say how many rows repeat others; ConfigError, or fewer problems, where such rows' answers differ."""
        self.about = ""
        if num_read == len(copies):
            return
        self.about = f"{num_read} rows state {len(copies)} different problems"
        if self._config.duplicates == "keep":
            self.about += '; data.train.duplicates = "collapse" takes each once'
            if copies.differing:
                firsts = np.unique(self.first_of)
                logger.warning("%s", self._describe_differing(copies, lambda number: self.place(int(firsts[number]))))
            return
        self.about += ", each is taken once"
        if copies.differing and self._config.different_answers == "error":
            raise ConfigError(self._describe_differing(copies, self.place))
        if copies.differing:
            self.about += f", but {len(copies.differing)} whose rows have different answers are left out"
            self._rows = self._rows.without(list(copies.differing))
            if not len(self._rows):
                raise ConfigError(f"data.train.path {self._config.path}: every problem's rows have different answers")
        self.first_of = np.arange(len(self._rows))

    def _describe_differing(self, copies: Copies, place: Callable[[int], str]) -> str:
        number, other = next(iter(copies.differing.items()))
        return (
            f"{len(copies.differing)} of {len(copies)} problems have rows with different answers, the first at "
            f"{place(number)} and {other}; correct the data, or leave such problems out with "
            'data.train.duplicates = "collapse" and data.train.different_answers = "drop"'
        )


def _first_of(numbers: np.ndarray) -> np.ndarray:
    """For every row the first one of its number."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _near(path: str, columns: Sequence[str]) -> str | None:
    """The column that was perhaps meant: the same but for case and blanks, or similar."""
    plain = {column.strip().lower(): column for column in columns}
    close = difflib.get_close_matches(path.strip().lower(), plain, n=1, cutoff=0.6)
    return repr(plain[close[0]]) if close and not path.startswith(f"{plain[close[0]]}.") else None
