"""Data files as they come: every format gives the same problems, and a bad file or row is named."""

import bz2
import codecs
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.data.json_text import parse
from megarl.data.problem import Problem
from megarl.data.problems import load_problems

ROWS = [
    {"question": 'He said "2, or 3"?\nHow many?', "answer": "So\n#### 1,250", "level": "5"},
    {"question": "Ünïcode ∑ 数?", "answer": "#### -7", "level": "1"},
]


def load(path: Path | list[Path], layout: Any = "gsm8k", **options: Any) -> list[Problem]:
    name = [str(one) for one in path] if isinstance(path, list) else str(path)
    problems = load_problems(FileData(source="file", path=name, layout=layout, **options))
    return problems.take(range(len(problems)))


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    cells = [list(rows[0]), *(row.values() for row in rows)]
    quoted = ((f'"{cell}"' for cell in (str(cell).replace('"', '""') for cell in row)) for row in cells)
    return "".join(delimiter.join(row) + "\n" for row in quoted).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": as_lines,
    "a.ndjson": as_lines,
    "lines.json": as_lines,
    "a.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "named.json": lambda rows: json.dumps({"version": "1", "data": rows, "tags": ["x"]}).encode(),
    "a.csv": as_csv,
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]),  # as `cat a.gz b.gz` makes them
    ".bz2": bz2.compress,
    ".zst": lambda data: bytes(pa.Codec("zstd").compress(data)),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_problems(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / (name + compression)
    path.write_bytes(COMPRESSIONS[compression](FORMATS[name](ROWS)))
    assert load(path) == [
        Problem(
            messages=({"role": "user", "content": row["question"]},),
            answer=answer,
            solution=row["answer"],
            metadata={"level": row["level"]},
        )
        for row, answer in zip(ROWS, ("1250", "-7"), strict=True)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "a.json", "a.csv", "a.tsv"])
def test_windows_files(tmp_path: Path, name: str) -> None:
    """A byte order mark, CRLF, blank lines at the end."""
    rows = [{"question": "a?", "answer": "#### 1"}, {"question": "b?", "answer": "#### 2"}]
    data = FORMATS[name](rows).replace(b"\n", b"\r\n") + b"\r\n\r\n"
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + data)
    assert [(p.messages[0]["content"], p.answer) for p in load(tmp_path / name)] == [("a?", "1"), ("b?", "2")]


def test_one_object_in_a_json_file_is_a_row(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "a?"}], "answer": "1"}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    assert [p.answer for p in load(tmp_path / "a.json", "prompt_answer")] == ["1"]


def test_files_of_several_formats_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = []
    for number, (name, write) in enumerate(FORMATS.items()):
        paths.append(tmp_path / f"{number}-{name}")
        paths[-1].write_bytes(write([{"question": f"{name}?", "answer": f"#### {number}"}]))
    assert [p.answer for p in load(paths)] == [str(number) for number in range(len(FORMATS))]
    problems = load_problems(FileData(source="file", path=[str(path) for path in paths], layout="gsm8k"))
    assert problems.take([6, 0, 6])[2].messages[0]["content"] == "a.tsv?"
    units = ["line 1", "line 1", "row 0", "row 0", "row 0", "line 2", "line 2", "row 0"]
    places = [f"{path} {unit}" for path, unit in zip(paths, units, strict=True)]
    assert [problems.place(index) for index in range(len(paths))] == places


def test_places_count_within_each_file(tmp_path: Path) -> None:
    rows = [{"question": "a?\nb?", "answer": "#### 1"}, {"question": "c?", "answer": "#### 1"}]
    (tmp_path / "a.csv").write_bytes(as_csv(rows))
    (tmp_path / "b.csv").write_bytes(as_csv(rows))
    problems = load_problems(FileData(source="file", path=f"{tmp_path}/*.csv", layout="gsm8k"))
    expected = [f"{tmp_path}/{name}.csv line {line}" for name in "ab" for line in (2, 4)]
    assert [problems.place(index) for index in range(4)] == expected


TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("text", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list], ids=["list", "large_list"])
def test_parquet_text_of_every_type(tmp_path: Path, text: Any, make_list: Any) -> None:
    # The Parquet writer takes neither dictionaries nor views within structs.
    inner = pa.large_string() if pa.types.is_dictionary(text) or pa.types.is_string_view(text) else text
    message = pa.struct({"role": inner, "content": inner, "name": pa.string(), "weight": pa.int8()})
    messages = [{"role": "user", "content": "a?", "name": None, "weight": 1}]
    answers = pa.array(["1", "2"]).cast(text) if not pa.types.is_string_view(text) else pa.array(["1", "2"], text)
    table = pa.table({"prompt": pa.array([messages] * 2, make_list(message)), "answer": answers})
    pq.write_table(table, tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet", "prompt_answer")
    assert [(p.messages, p.answer) for p in found] == [(({"role": "user", "content": "a?"},), str(n)) for n in (1, 2)]


def test_parquet_files_whose_other_columns_differ(tmp_path: Path) -> None:
    tables = [
        pa.table({"prompt": ["a?"], "answer": ["1"], "level": [5], "tags": [["x"]], "only": [1.5]}),
        pa.table({"answer": pa.array(["2"], pa.large_string()), "prompt": ["b?"], "level": ["hard"], "tags": [None]}),
        pa.table({"prompt": pa.array(["c?"], pa.string_view()), "answer": [3], "level": [{"of": 3}]}),
    ]
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    assert [(p.messages[0]["content"], p.answer, p.metadata) for p in load(tmp_path, "prompt_answer")] == [
        ("a?", "1", {"level": 5, "tags": ["x"], "only": 1.5}),
        ("b?", "2", {"level": "hard", "tags": None}),
        ("c?", "3", {"level": {"of": 3}}),
    ]


def test_columns_by_name_and_into_structs(tmp_path: Path) -> None:
    rows = [
        {"problem": "a?", "solution": {"value": "1", "by": "me"}, "id": 1},
        {"problem": "b?", "solution": {"value": 0.50}, "id": 2},
    ]
    columns = {"prompt": "problem", "answer": "solution.value"}
    (tmp_path / "a.jsonl").write_bytes(as_lines(rows))
    (tmp_path / "a.parquet").write_bytes(as_parquet([rows[0]]))
    expected = [("a?", "1", {"solution": {"by": "me"}, "id": 1}), ("b?", "0.5", {"id": 2})]
    for name, count in (("a.jsonl", 2), ("a.parquet", 1)):
        found = load(tmp_path / name, "prompt_answer", columns=columns)
        assert [(p.messages[0]["content"], p.answer, p.metadata) for p in found] == expected[:count]
    (tmp_path / "dots.csv").write_text("q.text,answer\na?,1\n")
    assert load(tmp_path / "dots.csv", "prompt_answer", columns={"prompt": "q.text"})[0].messages[0]["content"] == "a?"
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": [{"role": "user", "content": "a?"}], "label": 7, "reward_model": 1}\n'
    )
    found = load(tmp_path / "d.jsonl", "dapo_math", columns={"reward_model.ground_truth": "label"})
    assert (found[0].answer, found[0].metadata) == ("7", {"reward_model": 1})


@pytest.mark.parametrize("literal", ["0.00001", "1.50", "12345678901234567890.125", "123456789012345678901", "-0.0"])
def test_numbers_keep_their_digits(tmp_path: Path, literal: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a?", "answer": {literal}, "x": {literal}}}\n')
    (tmp_path / "a.json").write_text(f'[{{"prompt": "a?", "answer": {literal}}}]')
    (tmp_path / "a.csv").write_text(f"prompt,answer\na?,{literal}\n")
    pq.write_table(pa.table({"prompt": ["a?"], "answer": [Decimal(literal)]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        (problem,) = load(tmp_path / name, "prompt_answer")
        assert Decimal(problem.answer) == Decimal(literal)
        if name != "a.parquet":
            assert problem.answer == literal
    assert json.dumps(load(tmp_path / "a.jsonl", "prompt_answer")[0].metadata) == json.dumps({"x": json.loads(literal)})


def test_exponents_are_written_out() -> None:
    numbers = parse("[1e-05, 1.5E3, 2e999999, 1e400]")
    assert [number.text for number in numbers] == ["0.00001", "1500", "2e999999", "1" + "0" * 400]


def test_cells_of_a_csv_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer,other\na?,007,\nb?,1e5,NA\nNone,true,3\n")
    found = load(tmp_path / "a.csv", "prompt_answer")
    assert [(p.messages[0]["content"], p.answer, p.metadata["other"]) for p in found] == [
        *(("a?", "007", ""), ("b?", "1e5", "NA"), ("None", "true", "3"))
    ]


def test_a_cell_longer_than_the_csv_modules_default(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,answer\n{'x' * 200_000},1\n")
    assert len(load(tmp_path / "a.csv", "prompt_answer")[0].messages[0]["content"]) == 200_000


def problem_text(path: Path, data: bytes, layout: Any = "prompt_answer", **options: Any) -> str:
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(path, layout, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    text = problem_text(tmp_path / "a.csv", b"Prompt , answr,id\na?,1,2\n")
    assert text.startswith(
        "a.csv: layout 'prompt_answer' expects columns prompt, answer; missing prompt, answer, "
        "found Prompt ,  answr, id"
    )
    assert "; prompt: did you mean 'Prompt '?; answer: did you mean ' answr'?" in text
    rows = as_parquet([{"prompt": "a?", "solution": {"text": "1"}}])
    text = problem_text(tmp_path / "b.parquet", rows, columns={"answer": "solution.value"})
    assert "expects columns prompt, solution.value; missing solution.value, found prompt, solution" in text
    assert "name the file's columns in data.train.columns" in text


def test_only_the_file_without_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"prompt": "a?", "answer": "1"}\n')
    text = problem_text(tmp_path / "2.jsonl", b'{"prompt": "a?", "reply": "1"}\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "prompt_answer")
    assert str(caught.value).replace(f"{tmp_path}/", "") == text
    assert text.startswith("2.jsonl: ")


GOOD = b'{"prompt": "a?", "answer": "1"}\n'
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.csv", b"prompt,answer,prompt\na?,1,b?\n", "a.csv: column 'prompt' is there 2 times; rename the others"),
    ("a.csv", b"prompt,answer\na?,1\nb?\n", "a.csv line 3: expected 2 cells as in the header, found 1"),
    ("a.csv", b"prompt,answer\na?,1\nb?,1,2\n", "a.csv line 3: expected 2 cells as in the header, found 3"),
    ("a.csv", b'prompt,answer\na?,1\n"b?,1\n', "a.csv line 3: not valid CSV: unexpected end of data"),
    (
        "a.csv",
        b"prompt,answer\na?,1\ncaf\xe9,1\n",
        "a.csv line 3: expected UTF-8, found byte 0xe9 after b'caf'",
    ),
    ("a.csv", "prompt,answer\na?,1\n".encode("utf-16"), "a.csv: expected UTF-8, found UTF-16 or UTF-32; convert"),
    ("a.csv", b"prompt,answer\n", "the data set is empty"),
    ("a.jsonl", GOOD + b'{"prompt": "\xff", "answer": "1"}', "a.jsonl line 2: expected UTF-8, found byte 0xff"),
    ("a.jsonl", b'{"prompt": "a?", "answer": "1", "answer": "2"}', "line 1: key 'answer' stands twice"),
    (
        "a.jsonl",
        b'{"prompt": "a?", "answer": NaN}',
        "line 1: column 'answer': expected the ground truth as text",
    ),
    ("a.jsonl", b'{"prompt": "a?", "answer": true}', "expected the ground truth as text or a number, found True"),
    ("a.jsonl", b'{"prompt": "\\ud83d", "answer": "1"}', "a.jsonl line 1: text with half a surrogate pair"),
    ("a.jsonl", b'{"prompt": "a?", "answer": "\\ud83d"}', "a.jsonl line 1: text with half a surrogate pair"),
    ("a.jsonl", b'{"prompt": "a?", "answer": ' + b"1" * 5000 + b"}", "a.jsonl line 1: Exceeds the limit"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: "),
    (
        "a.json",
        b'{"prompt": ["a?"], "x": ["1"]}',
        "a.json: expected an array of objects, an object with one such",
    ),
    ("a.json", b"[" + GOOD + b", 3]", "a.json row 1: expected a JSON object, found int"),
    ("a.json", b"[" + GOOD + b",", "a.json: expected an array of JSON objects: not valid JSON"),
    ("a.json", GOOD + b'{"prompt": "b?"', "a.json line 2: not valid JSON"),
    ("a.json", b"7", "one object a line; found int"),
    ("a.json", b"", "the data set is empty"),
    ("a.jsonl.gz", b"plain", "a.jsonl.gz: cannot be read (zlib inflate failed"),
    ("a.jsonl.gz", gzip.compress(GOOD * 500, mtime=0)[:-20], "a.jsonl.gz: cannot be read (Truncated compressed stream"),
    ("a.parquet.gz", gzip.compress(b"no", mtime=0), "a.parquet.gz: cannot be read as parquet"),
    ("a.parquet", b"", "a.parquet: cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "data", "expected"), BAD_FILES)
def test_a_bad_file_is_named_with_its_row(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    assert expected in problem_text(tmp_path / name, data)


def test_nan_in_a_parquet_answer_and_two_fields_of_one_name(tmp_path: Path) -> None:
    text = problem_text(
        tmp_path / "a.parquet", as_parquet([{"prompt": "a?", "answer": v} for v in (1.5, float("nan"))])
    )
    assert text.startswith("a.parquet row 1: column 'answer': expected the ground truth as text or a number, found nan")
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(pa.table({"prompt": ["a?"], "answer": ["1"], "x": twice}), tmp_path / "b.parquet")
    assert "column 'x': a struct with two fields of one name" in problem_text(
        tmp_path / "b.parquet", (tmp_path / "b.parquet").read_bytes()
    )


def test_all_bad_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    lines = ['{"prompt": "a?", "answer": "1"}', '{"prompt": "b?"', *['{"prompt": "c?", "answer": null}'] * 10]
    text = problem_text(tmp_path / "a.jsonl", "\n".join(lines).encode())
    assert text.splitlines()[0].startswith("a.jsonl line 2: not valid JSON")
    assert [line.partition(":")[0] for line in text.splitlines()[1:8]] == [f"a.jsonl line {n}" for n in range(3, 10)]
    assert text.splitlines()[8:] == ["and 3 more rows that cannot be used"]


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    text = problem_text(tmp_path / "a.jsonl", json.dumps({"prompt": "a?", "answer": ["x" * 5000]}).encode())
    assert len(text) < 400
    assert text.endswith("xxx...")
