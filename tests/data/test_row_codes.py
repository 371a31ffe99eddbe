"""Equal rows are found in Arrow exactly as Python would find them."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.data.row_codes import SeenRows, first_rows, row_codes

TEXT = st.none() | st.sampled_from(["", "a", "b", "ab"])
MESSAGE = st.none() | st.fixed_dictionaries({"role": TEXT, "content": TEXT, "n": st.none() | st.integers(0, 1)})
MESSAGES = st.none() | st.lists(MESSAGE, max_size=3)
MESSAGES_TYPE = pa.large_list(pa.struct({"role": pa.large_string(), "content": pa.large_string(), "n": pa.int64()}))
ROWS = st.lists(st.tuples(MESSAGES, TEXT), max_size=12)


def arrays(rows: list[tuple[Any, Any]]) -> list[pa.Array]:
    return [pa.array([row[0] for row in rows], MESSAGES_TYPE), pa.array([row[1] for row in rows], pa.large_string())]


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_codes_are_equal_where_values_are(rows: list[tuple[Any, Any]]) -> None:
    for column in range(2):
        codes = row_codes(arrays(rows)[column])
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                assert (codes[i] == codes[j]) == (first[column] == second[column])
    positions, same = first_rows(arrays(rows)) if rows else (np.arange(0), np.arange(0))
    assert positions.tolist() == [i for i, row in enumerate(rows) if row not in rows[:i]]
    assert [positions[i] for i in same] == [rows.index(row) for row in rows]


def test_a_slice_is_compared_by_its_own_rows() -> None:
    whole = pa.array([[1], [2, 3], None, [2, 3], [], [2], [1]], pa.large_list(pa.int64()))
    codes = row_codes(whole[1:])
    assert codes[0] == codes[2]
    assert len(set(codes.tolist())) == 5


@settings(max_examples=100, deadline=None)
@given(batches=st.lists(ROWS.filter(bool), max_size=4))
def test_rows_are_numbered_over_batches(batches: list[list[tuple[Any, Any]]]) -> None:
    seen, known, asked = SeenRows(), list[tuple[Any, Any]](), list[tuple[Any, Any]]()
    for rows in batches:

        def number_new(positions: np.ndarray, rows: list[tuple[Any, Any]] = rows) -> np.ndarray:
            asked.extend(rows[i] for i in positions)
            known.extend(rows[i] for i in positions if rows[i] not in known)
            return np.array([known.index(rows[i]) for i in positions], dtype=np.int64)

        numbers = seen.number(arrays(rows), number_new)
        assert [known[i] for i in numbers] == rows
    assert asked == known


def test_a_change_of_type_and_values_that_cannot_be_compared() -> None:
    seen, calls = SeenRows(), list[list[int]]()

    def number_new(positions: np.ndarray) -> np.ndarray:
        calls.append(positions.tolist())
        return positions

    seen.number([pa.array(["1", "1"])], number_new)
    seen.number([pa.array([1, 1, 2])], number_new)
    maps = pa.array([[("a", 1)], [("a", 1)]], pa.map_(pa.string(), pa.int64()))
    assert seen.number([maps], number_new).tolist() == [0, 1]
    assert calls == [[0], [0, 2], [0, 1]]
