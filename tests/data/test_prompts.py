"""Prompt sets: every source and schema on real files, every error."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData, ReasoningGymData
from megarl.data.prompts import PromptSet, load_prompts
from megarl.data.tokenizer import load_tokenizer

GSM8K_ROWS = [
    {
        "question": "Natalia sold 48 clips, then half as many. How many?",
        "answer": "48/2 = <<48/2=24>>24\n48+24=72\n#### 72",
    },
    {"question": "How many grams?", "answer": "A lot.\n#### 1,250"},
]
DAPO_ROWS = [
    {
        "data_source": "math_dapo",
        "prompt": [{"content": "Solve: 1 + 1", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    }
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def load(path: Path | str, layout: Any, tokenizer: Any, **options: Any) -> PromptSet:
    train = FileData(source="file", path=str(path), layout=layout, split=options.pop("split", "train"))
    limit = options.pop("max_prompt_tokens", 500)
    return load_prompts(DataConfig(train=train, **options), tokenizer, max_prompt_tokens=limit)


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "train.jsonl"), (write_parquet, "train.parquet")])
def test_gsm8k_file(tmp_path: Path, tokenizer: Any, write: Any, name: str) -> None:
    prompts = load(write(tmp_path / name, GSM8K_ROWS), "gsm8k", tokenizer)
    assert [prompt.answer for prompt in prompts] == ["72", "1250"]
    assert prompts[1].text == "<|im_start|>user\nHow many grams?<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[1].index == prompts[-1].index == 1
    assert tokenizer.decode(prompts[1].token_ids) == prompts[1].text
    assert prompts[1].token_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert list(prompts) == prompts[:] == [prompts[0], prompts[1]]
    with pytest.raises(IndexError):
        prompts[2]


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "a.jsonl"), (write_parquet, "a.parquet")])
def test_dapo_math_file_with_system_prompt_and_instruction(
    tmp_path: Path, tokenizer: Any, write: Any, name: str
) -> None:
    path = write(tmp_path / name, DAPO_ROWS)
    prompts = load(path, "dapo_math", tokenizer, system_prompt="Think.", instruction="Put it in \\boxed{}.")
    assert prompts[0].text == (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nSolve: 1 + 1\nPut it in \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompts[0].answer == "2"
    assert prompts[0].metadata == {
        "data_source": "math_dapo",
        "ability": "MATH",
        "reward_model": {"style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    }


def test_a_prompt_says_where_it_comes_from(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", GSM8K_ROWS)
    assert load(path, "gsm8k", tokenizer).place(1) == f"{path} line 2"
    generated = DataConfig(train=ReasoningGymData(task="chain_sum", size=5))
    assert load_prompts(generated, tokenizer, max_prompt_tokens=200).place(3) == "reasoning-gym chain_sum problem 3"


def test_prompt_answer_takes_text_or_messages_and_keeps_other_columns(tmp_path: Path, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "b?"}]
    rows = [{"prompt": "a?", "answer": 3, "level": 5}, {"prompt": messages, "answer": "x"}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    prompts = load(path, "prompt_answer", tokenizer, chat_template=False)
    assert [(p.text, p.answer, p.metadata) for p in prompts] == [("a?", "3", {"level": 5}), ("Own.\n\nb?", "x", {})]
    with_system = load(path, "prompt_answer", tokenizer, chat_template=False, system_prompt="Ours.", instruction="Go.")
    assert [p.text for p in with_system] == ["Ours.\n\na?\nGo.", "Ours.\nOwn.\n\nb?\nGo."]


def test_directory_reads_only_the_asked_split(tmp_path: Path, tokenizer: Any) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", GSM8K_ROWS[:1])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", GSM8K_ROWS[1:])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", GSM8K_ROWS[1:])
    assert [p.answer for p in load(tmp_path, "gsm8k", tokenizer)] == ["72", "1250"]
    assert [p.answer for p in load(tmp_path, "gsm8k", tokenizer, split="test")] == ["1250"]
    with pytest.raises(ConfigError, match=r"files of split 'dev' .*, found test-00000-of-00001\.parquet, train-00000"):
        load(tmp_path, "gsm8k", tokenizer, split="dev")


def test_directory_without_split_names_is_read_whole(tmp_path: Path, tokenizer: Any) -> None:
    write_jsonl(tmp_path / "part1.jsonl", GSM8K_ROWS[1:])
    write_jsonl(tmp_path / "part2.jsonl", GSM8K_ROWS[:1])
    assert [p.answer for p in load(tmp_path, "gsm8k", tokenizer)] == ["1250", "72"]
    write_parquet(tmp_path / "part1.parquet", GSM8K_ROWS)
    with pytest.raises(ConfigError, match=r"several formats \(part.\.jsonl, part1\.parquet\)"):
        load(tmp_path, "gsm8k", tokenizer)


@pytest.mark.parametrize(
    ("text", "layout", "expected"),
    [
        ("", "gsm8k", "the data set is empty"),
        (
            '{"question": "a?", "reply": "#### 1"}',
            "gsm8k",
            "expects columns question, answer; missing answer, found question, reply",
        ),
        (
            '{"question": "a?", "answer": "#### 1"}\n{"question": "b?"}',
            "gsm8k",
            r"line 2: column 'answer': expected text, found None",
        ),
        ('{"question": "a?", "answer": "42"}', "gsm8k", r'line 1: answer must end in "#### <number>", found \'42\''),
        ('{"question": "a?", "answer": "#### 1"', "gsm8k", "line 1: not valid JSON: Expecting"),
        ("[1]", "gsm8k", "line 1: expected a JSON object, found list"),
        ('{"prompt": [{"role": "user"}], "answer": "1"}', "prompt_answer", "a role and a content"),
        ('{"prompt": [], "answer": "1"}', "prompt_answer", "expected text or a list"),
        (
            '{"prompt": [{"role": "assistant", "content": "hm"}], "answer": "1"}',
            "prompt_answer",
            "last message from the user",
        ),
        (
            '{"prompt": "a?", "answer": null}',
            "prompt_answer",
            "expected the ground truth as text or a number, found None",
        ),
        (
            '{"prompt": "a?", "reward_model": {"style": "rule"}}',
            "dapo_math",
            "expects columns prompt, reward_model.ground_truth; missing reward_model.ground_truth",
        ),
    ],
)
def test_bad_file_says_where_and_what(tmp_path: Path, tokenizer: Any, text: str, layout: str, expected: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text + "\n")
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path / "bad.jsonl", layout, tokenizer)


def test_missing_paths(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl\": no such file or directory \(looked at /.*none\.jsonl\)"):
        load(tmp_path / "none.jsonl", "gsm8k", tokenizer)
    with pytest.raises(ConfigError, match=r"no files in .* whose names end in \.jsonl, \.ndjson, .*\(each also \.gz"):
        load(tmp_path, "gsm8k", tokenizer)
    (tmp_path / "data.xlsx").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"expected a name ending in \.jsonl, .*\.parquet"):
        load(tmp_path / "data.xlsx", "gsm8k", tokenizer)
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        load(tmp_path / "text.parquet", "gsm8k", tokenizer)


def test_hub_name_that_cannot_be_read_says_what_to_do(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `datasets`: install it. With it, and no network: the hub's answer. Always: download the files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"(?s)(pip install datasets|the hub gave no data set).*download the files"):
        load("no-such-owner/no-such-set", "gsm8k", tokenizer)


def test_too_long_prompt_names_index_length_and_limit(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "1" * n, "answer": "1"} for n in (3, 12, 5, 20)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(
        ConfigError,
        match=r"x\.jsonl line 2: prompt 1 has 12 tokens, rollout.max_prompt_tokens is 11; 2 of 4 .* longest has 20",
    ):
        load(path, "prompt_answer", tokenizer, chat_template=False, max_prompt_tokens=11)
    assert len(load(path, "prompt_answer", tokenizer, chat_template=False, max_prompt_tokens=20)) == 4


def test_prompt_without_tokens_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "", "answer": "1"}])
    with pytest.raises(ConfigError, match="prompt 0 has no tokens"):
        load(path, "prompt_answer", tokenizer, chat_template=False)


def test_missing_and_refusing_chat_templates(tmp_path: Path, tiny_model_dir: Path) -> None:
    bare = load_tokenizer(tiny_model_dir)
    bare.chat_template = None
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a?", "answer": "1"}])
    with pytest.raises(ConfigError, match=r"set data\.chat_template = false"):
        load(path, "prompt_answer", bare)
    assert load(path, "prompt_answer", bare, chat_template=False)[0].text == "a?"
    bare.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    with pytest.raises(ConfigError, match="refuses messages of roles system, user: no system role"):
        load(path, "prompt_answer", bare, system_prompt="s")


def test_reasoning_gym_prompts_are_short_and_the_same_each_time(tokenizer: Any) -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config = DataConfig(train=ReasoningGymData(task="chain_sum", size=2500, seed=3, options=options))
    prompts = load_prompts(config, tokenizer, max_prompt_tokens=30)
    assert len(prompts) == 2500
    assert max(len(prompt.token_ids) for prompt in prompts) <= 28
    assert prompts[1999] == load_prompts(config, tokenizer, max_prompt_tokens=30)[1999]
    entry = prompts[7].metadata["entry"]
    assert entry["question"] in prompts[7].text
    assert prompts[7].answer == entry["answer"] == str(eval(entry["metadata"]["expression"]))
    assert prompts[7].metadata["task"] == "chain_sum"
    assert len({prompt.text for prompt in prompts}) > 1000


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("chainsum", {}, r"'chainsum' is not a reasoning-gym task; nearest: .*chain_sum"),
        ("chain_sum", {"max_term": 2}, r"unknown max_term; chain_sum has min_terms = 2, .*max_digits = 4"),
        ("chain_sum", {"size": 2}, r"unknown size; set data\.train\.size instead"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, r"do not suit reasoning-gym's chain_sum: .*max_terms"),
        ("chain_sum", {"min_terms": "two"}, r"do not suit reasoning-gym's chain_sum"),
    ],
)
def test_reasoning_gym_errors_list_what_is_valid(
    tokenizer: Any, task: str, options: dict[str, Any], expected: str
) -> None:
    config = DataConfig(train=ReasoningGymData(task=task, size=5, options=options))
    with pytest.raises(ConfigError, match=expected):
        load_prompts(config, tokenizer, max_prompt_tokens=100)


def test_the_digest_is_of_what_the_model_and_the_verifier_see(tmp_path: Path, tokenizer: Any) -> None:
    def digest(rows: list[dict[str, Any]], **options: Any) -> str:
        return load(write_jsonl(tmp_path / "rows.jsonl", rows), "prompt_answer", tokenizer, **options).digest

    rows = [{"prompt": "1 + 1", "answer": "2"}, {"prompt": "2 + 2", "answer": "4"}]
    first = digest(rows)
    assert len(first) == 16
    assert digest([{**row, "source": "another column"} for row in rows]) == first
    changed = [
        digest([rows[0], {"prompt": "2 + 3", "answer": "4"}]),
        digest([rows[0], {"prompt": "2 + 2", "answer": "5"}]),
        digest(rows[::-1]),
        digest([*rows, rows[0]]),
        digest(rows[:1]),
        digest(rows, instruction="Think."),
    ]
    assert len({first, *changed}) == 7


def test_the_digest_is_of_worked_answers_too(tmp_path: Path, tokenizer: Any) -> None:
    """The guided loss learns from them; the verifier reads their last line alone."""

    def digest(answer: str) -> str:
        rows = [{"question": "1 + 1", "answer": answer}]
        return load(write_jsonl(tmp_path / "rows.jsonl", rows), "gsm8k", tokenizer).digest

    assert digest("It is 2.\n#### 2") != digest("One and one is 2.\n#### 2")
    assert digest("It is 2.\n#### 2") == digest("It is 2.\n#### 2")
