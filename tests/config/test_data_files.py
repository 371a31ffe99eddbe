"""Which files a data path means: preflight and loader share the answer."""

from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.config.data_files import file_compression, file_format, find_data_files
from tests.config.text import load_small, problems_of, write_config


def make(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("")


def found(directory: Path, path: str | list[str] = "", **options: str) -> list[str]:
    paths = [path] if isinstance(path, str) else path
    entries = [entry if entry.startswith("~") else str(directory / entry) for entry in paths]
    data = FileData(source="file", path=entries[0] if isinstance(path, str) else entries, layout="gsm8k", **options)
    return [str(file.relative_to(directory)) for file in find_data_files(data)]


def problem(directory: Path, path: str | list[str] = "", **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        found(directory, path, **options)
    return str(caught.value)


def test_formats_by_ending() -> None:
    assert [file_format(Path(name)) for name in ("a.JSONL", "a.ndjson.gz", "a.json.zst", "a.tsv", "a.csv.bz2")] == [
        *("json lines", "json lines", "json", "tsv", "csv")
    ]
    assert [file_format(Path(name)) for name in ("a.parquet", "a.gz", "README.md", "jsonl")] == ["parquet", *[None] * 3]
    assert [file_compression(Path(name)) for name in ("a.csv", "a.csv.gz", "a.json.ZST")] == [None, "gzip", "zstd"]


def test_a_list_keeps_its_order_and_a_pattern_is_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b/2.parquet", "b/1.parquet", "b/deep/er/0.parquet", "a.jsonl", "c.csv")
    assert found(tmp_path, ["c.csv", "b/*.parquet", "a.jsonl"]) == ["c.csv", "b/1.parquet", "b/2.parquet", "a.jsonl"]
    assert found(tmp_path, "b/**/*.parquet") == ["b/1.parquet", "b/2.parquet", "b/deep/er/0.parquet"]
    make(tmp_path, "d[1].jsonl")
    assert found(tmp_path, "d[1].jsonl") == ["d[1].jsonl"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "sets/a.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found(tmp_path, "~/sets/a.jsonl") == found(tmp_path, "~/sets") == found(tmp_path, "~/s*/a.jsonl")


def test_every_bad_entry_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "notes.md")
    text = problem(tmp_path, ["a.jsonl", "absent.jsonl", "*.csv", "notes.md", "*", "a.jsonl"])
    lines = text.splitlines()
    assert len(lines) == 5
    assert 'absent.jsonl": no such file or directory (looked at /' in lines[0]
    assert '*.csv": no file matches' in lines[1]
    assert (
        'notes.md": expected a name ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet (each also .gz' in lines[2]
    )
    assert '*": also matches ' in lines[3]
    assert "notes.md" in lines[3]
    assert lines[4] == f"data.train.path: {tmp_path / 'a.jsonl'} is named twice; its rows would count double"


def test_one_pattern_or_directory_has_one_format(tmp_path: Path) -> None:
    make(tmp_path, "d/a.jsonl", "d/a.parquet")
    for path in ("d", "d/*"):
        assert "files of several formats (a.jsonl, a.parquet), perhaps the same rows twice" in problem(tmp_path, path)
    assert found(tmp_path, ["d/a.jsonl", "d/a.parquet"]) == ["d/a.jsonl", "d/a.parquet"]


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "train.parquet", "gsm8k_train.parquet", "a-train.gz"])
def test_a_directory_never_mixes_splits(tmp_path: Path, name: str) -> None:
    name = name.replace(".gz", ".jsonl.gz").replace(".parquet", ".jsonl")
    make(tmp_path, name, name.replace("train", "test"), "more.jsonl", "constrained.jsonl")
    assert found(tmp_path) == [name]
    assert found(tmp_path, split="test") == [name.replace("train", "test")]
    assert "expected files of split 'validation' (data.train.split)" in problem(tmp_path, split="validation")


def test_hub_snapshots(tmp_path: Path) -> None:
    make(tmp_path, "README.md", "dataset_infos.json", ".cache/huggingface/x.json", "data/train-00000-of-00002.parquet")
    make(tmp_path, "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")
    assert found(tmp_path) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert found(tmp_path, split="test") == ["data/test-00000-of-00001.parquet"]


def test_directories_named_after_splits_and_subsets(tmp_path: Path) -> None:
    make(tmp_path, "main/train/0.parquet", "main/test/0.parquet", "socratic/train/0.parquet")
    assert found(tmp_path, subset="main") == ["main/train/0.parquet"]
    assert found(tmp_path, subset="main", split="test") == ["main/test/0.parquet"]
    assert "(main, socratic); name one in data.train.subset" in problem(tmp_path)
    assert "expected a directory" in problem(tmp_path, subset="other")
    assert "expected split 'dev' (data.train.split)" in problem(tmp_path, subset="main", split="dev")


def test_an_empty_directory_and_a_name_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "d" / "below").mkdir(parents=True)
    assert f"no files in {tmp_path / 'd'} whose names end in .jsonl" in problem(tmp_path, "d")
    assert find_data_files(FileData(source="file", path="openai/gsm8k", layout="gsm8k")) == []
    with pytest.raises(ConfigError, match="no such file or directory"):
        find_data_files(FileData(source="file", path=["openai/gsm8k", "a/b"], layout="gsm8k"))


FILE = 'data.train={{source="file", path={path}, layout="prompt_answer"{rest}}}'
REWARD = 'reward.verifier={kind="math_verify"}'


def test_columns_and_paths_are_checked_when_the_configuration_is_read(tmp_path: Path) -> None:
    rest = ', columns={prompt="problem", answers="solution"}'
    (text,) = problems_of(write_config(tmp_path), FILE.format(path='"x.jsonl"', rest=rest), REWARD)
    assert text.startswith(
        'data.train.columns: "answers" is no column of layout "prompt_answer", which has prompt, answer (the layout\'s '
        'name is on the left, the file\'s on the right); did you mean "answer"?'
    )
    for path in ("[]", '""', '["a.jsonl", ""]'):
        (text,) = problems_of(write_config(tmp_path), FILE.format(path=path, rest=""), REWARD)
        assert text.startswith("data.train.path: expected a path or a list of paths, found")
    for wrong, value in (("3", "3 (integer)"), ('{a = "b"}', '{a = "b"} (table)')):
        (text,) = problems_of(write_config(tmp_path), FILE.format(path=wrong, rest=""), REWARD)
        assert text.startswith(f"data.train.path: expected a string or an array of strings, found {value}")
    config = load_small(tmp_path, FILE.format(path='["a.jsonl", "b/*.csv"]', rest=', columns={answer="a.b"}'), REWARD)
    assert isinstance(config.data.train, FileData)
    assert config.data.train.path == ["a.jsonl", "b/*.csv"]
    assert config.data.train.sources() == {"prompt": "prompt", "answer": "a.b"}
