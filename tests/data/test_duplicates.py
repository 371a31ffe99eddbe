"""Rows that state the same problem: counted, collapsed by choice, one name for all of them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData, ReasoningGymData
from megarl.config.rollout import RolloutConfig
from megarl.data.prompts import PromptSet, load_prompts
from megarl.data.sft import load_pairs
from megarl.data.stops import load_stops
from megarl.data.tokenizer import load_tokenizer
from tests.data.dapo_math import write_dapo_math


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def message(content: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


ROWS = [
    {"prompt": "a?", "answer": "1", "id": 0},
    {"prompt": "b?", "answer": "2", "id": 1},
    {"prompt": message("a?"), "answer": "1", "id": 2},
    {"prompt": message("b?", name="x"), "answer": 2, "id": 3},
    {"prompt": [{"role": "system", "content": "s"}, *message("a?")], "answer": "1", "id": 4},
    {"prompt": "a?", "answer": "1", "id": 5},
]


def load(path: Path, tokenizer: Any, rows: list[dict[str, Any]] | None = None, **options: Any) -> PromptSet:
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    layout = options.pop("layout", "prompt_answer")
    train = FileData(source="file", path=str(path), layout=layout, **options)
    return load_prompts(DataConfig(train=train), tokenizer, max_prompt_tokens=800)


def test_kept_rows_share_a_name_and_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    prompts = load(tmp_path / "a.jsonl", tokenizer, ROWS)
    assert [prompt.metadata["id"] for prompt in prompts] == [prompt.index for prompt in prompts] == list(range(6))
    names = [prompt.identity for prompt in prompts]
    assert [names.index(name) for name in names] == [0, 1, 0, 1, 4, 0]
    assert prompts[2].identity == names[0]
    said = '; 6 rows state 3 different problems; data.train.duplicates = "collapse" takes each once'
    assert prompts.about.endswith(said)


def test_collapsed_problems_come_once_in_the_order_of_their_first_row(tmp_path: Path, tokenizer: Any) -> None:
    prompts = load(tmp_path / "a.jsonl", tokenizer, ROWS, duplicates="collapse")
    assert [(prompt.index, prompt.metadata["id"]) for prompt in prompts] == [(0, 0), (1, 1), (2, 4)]
    assert prompts.place(2) == f"{tmp_path / 'a.jsonl'} line 5"
    assert prompts.about.endswith("; 6 rows state 3 different problems, each is taken once")
    kept = load(tmp_path / "a.jsonl", tokenizer)
    assert [prompt.identity for prompt in prompts] == [kept[index].identity for index in (0, 1, 4)]


def test_supervised_pairs_collapse_too(tmp_path: Path, tokenizer: Any) -> None:
    prompts = load(tmp_path / "a.jsonl", tokenizer, ROWS, duplicates="collapse")
    train = FileData(source="file", path=str(tmp_path / "a.jsonl"), layout="prompt_answer", duplicates="collapse")
    config = DataConfig(train=train)
    stops = load_stops("unused", tokenizer, data=config, rollout=RolloutConfig())
    pairs = load_pairs(config, tokenizer, stops=stops, max_prompt_tokens=500, max_response_tokens=50)
    assert [pair[0] for pair in pairs] == [prompt.token_ids for prompt in prompts]


def test_without_duplicates_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    assert "different problems" not in load(tmp_path / "a.jsonl", tokenizer, ROWS[:2]).about


def test_a_problem_that_is_left_out_goes_with_all_its_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": text, "answer": "1"} for text in ("a?", "b" * 900, "c?", "a?", "b" * 900, "c?")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = FileData(source="file", path=str(tmp_path / "a.jsonl"), layout="prompt_answer")
    config = DataConfig(train=train, overlong_prompts="drop")
    prompts = load_prompts(config, tokenizer, max_prompt_tokens=200)
    assert [prompt.index for prompt in prompts] == [0, 2, 3, 5]
    assert prompts[2] == prompts[-2] == prompts[1:4][1]
    assert list(prompts.answers()) == [(0, "1"), (2, "1"), (3, "1"), (5, "1")]


def test_different_answers(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    rows = [{"prompt": text, "answer": answer} for text, answer in zip("abcabdb", "1231926", strict=True)]
    path = tmp_path / "a.jsonl"
    said = f"1 of 4 problems have rows with different answers, the first at {path} line 2 and {path} line 5"
    with pytest.raises(ConfigError, match=said) as caught:
        load(path, tokenizer, rows, duplicates="collapse")
    assert 'data.train.different_answers = "drop"' in str(caught.value)
    dropped = load(path, tokenizer, duplicates="collapse", different_answers="drop")
    assert [(prompt.index, prompt.answer) for prompt in dropped] == [(0, "1"), (1, "3"), (2, "2")]
    assert dropped.about.endswith(
        "; 7 rows state 4 different problems, each is taken once, but 1 whose rows have different answers are left out"
    )
    assert [dropped.place(index) for index in range(3)] == [f"{path} line {line}" for line in (1, 3, 6)]
    caplog.clear()
    assert [prompt.answer for prompt in load(path, tokenizer)] == list("1231926")
    assert any(said in text for text in caplog.messages)
    with pytest.raises(ConfigError, match="every problem's rows have different answers"):
        load(path, tokenizer, [rows[1], rows[4]], duplicates="collapse", different_answers="drop")


def test_duplicates_of_another_file_and_batch(tmp_path: Path, tokenizer: Any) -> None:
    """150,000 rows, more than a batch, state 30 problems; another file has these and ten more."""
    write_dapo_math(tmp_path / "d" / "a.parquet", problems=30, copies=5000)
    write_dapo_math(tmp_path / "d" / "b.parquet", problems=40, copies=2)
    prompts = load(tmp_path / "d", tokenizer, layout="dapo_math", duplicates="collapse")
    assert len(prompts) == len({prompt.identity for prompt in prompts}) == 40
    assert prompts.place(0) == f"{tmp_path / 'd' / 'a.parquet'} row 0"
    assert all(prompts.place(index).startswith(f"{tmp_path / 'd' / 'b.parquet'} row ") for index in range(30, 40))


def test_only_different_problems_are_tokenised(tmp_path: Path, tokenizer: Any) -> None:
    heard: list[tuple[str, int, int]] = []
    write_dapo_math(tmp_path / "a.parquet", problems=50, copies=40)
    train = FileData(source="file", path=str(tmp_path / "a.parquet"), layout="dapo_math")
    prompts = load_prompts(
        DataConfig(train=train), tokenizer, max_prompt_tokens=800, listen=lambda *words: heard.append(words)
    )
    assert len(prompts) == 2000
    assert ("rows read", 2000, 2000) in heard
    assert heard[-1] == ("prompts checked", 50, 50)


def test_generated_problems_have_names_too(tokenizer: Any) -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config = DataConfig(train=ReasoningGymData(task="chain_sum", size=400, options=options))
    prompts = list(load_prompts(config, tokenizer, max_prompt_tokens=100))
    texts, names = {prompt.text for prompt in prompts}, {prompt.identity for prompt in prompts}
    assert len(names) == len(texts) == len({(prompt.identity, prompt.text) for prompt in prompts}) < 400


@pytest.mark.slow
def test_dapo_math_of_full_size_loads_in_a_minute(tmp_path: Path, tokenizer: Any) -> None:
    """1.8 million rows, 17,917 problems: read, collapsed, rendered and tokenised."""
    path = write_dapo_math(tmp_path / "a.parquet", problems=17_917, copies=100)
    start_s = time.monotonic()
    prompts = load(path, tokenizer, layout="dapo_math", duplicates="collapse")
    seconds = time.monotonic() - start_s
    assert len(prompts) == 17_917
    assert seconds < 60
