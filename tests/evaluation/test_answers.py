"""The file of answers: whole problems, gone on with, complete once, and never of other questions."""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.evaluation.answers import AnswersFile, find_other_settings, read_answers, read_settings
from tests.evaluation.answers import SETTINGS, make_answer, write_answers


def test_parts_become_one_sorted_file(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path, "sums", SETTINGS)
    assert (file.found_settings(), file.problems(), file.is_complete) == (None, set(), False)
    second = [make_answer(5, 0, "x"), make_answer(5, 1, ".")]
    first = [make_answer(2, 0, "-"), make_answer(2, 1, "x")]
    file.add(second)
    again = AnswersFile(tmp_path, "sums", SETTINGS)
    assert again.problems() == {5}
    assert again.found_settings() == SETTINGS
    again.add(first)
    again.finish(problems=2)
    assert again.is_complete
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sums.parquet"]
    rows = read_answers(again.path).to_pylist()
    assert rows == [asdict(answer) for answer in (*first, *second)]
    assert pq.ParquetFile(again.path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_file_that_lacks_problems_is_not_made(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path, "sums", SETTINGS)
    file.add([make_answer(0, 0, "x")])
    with pytest.raises(RuntimeError, match="has answers to 1 problems, expected 2"):
        file.finish(problems=2)
    assert not file.is_complete


def test_what_was_asked_otherwise_is_told(tmp_path: Path) -> None:
    file = write_answers(tmp_path, ["x."], samples=2, judge={"kind": "gsm8k"})
    found = read_settings(file.path)
    assert find_other_settings(found, file.settings) == []
    wanted = {**file.settings, "samples": 4, "model": "other", "top_p": 0.95}
    assert find_other_settings(found, wanted) == [
        "model 'm', not 'other'",
        "samples 2, not 4",
        "top_p None, not 0.95",
    ]
    assert find_other_settings(found, wanted, but=("model", "samples", "top_p")) == []


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match="no file of answers that megarl wrote"):
        read_settings(path)
    with pytest.raises(ValueError, match="has columns"):
        read_answers(path)
    uneven = write_answers(tmp_path, ["x.", "x"])
    with pytest.raises(ValueError, match=r"has \[1, 2\] answers to a problem"):
        read_answers(uneven.path)
