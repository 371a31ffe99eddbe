"""Conversations in a column: lists, JSON text, and text that only looks a little like them."""

import json
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData
from megarl.data.messages import MessagesError, read_messages
from megarl.data.prompts import load_prompts
from megarl.data.tokenizer import load_tokenizer
from tests.data.test_prompts import write_jsonl

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


@pytest.mark.parametrize(
    "value",
    [CONVERSATION, json.dumps(CONVERSATION), json.dumps(CONVERSATION, indent=1), f"\n {json.dumps(CONVERSATION)} "],
)
def test_a_conversation_is_read_from_a_list_or_its_json(value: Any) -> None:
    assert read_messages(value) == tuple(CONVERSATION)


def test_other_keys_of_a_message_are_left_out_whatever_their_order() -> None:
    text = '[{"name": "x", "content": "1 + 1?", "role": "user"}]'
    assert read_messages(text) == ({"role": "user", "content": "1 + 1?"},)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3] sum these",
        "[1, 2, 3]",
        "[]",
        '[{"x": 1}]',
        '[{"x": 1}, {"role": "user", "content": "a"}]',
        "{1, 2} is a set",
        '{"a": 1}',
        'Parse [{"role": "user", "content": "a"}]',
        "",
    ],
)
def test_text_is_text(text: str) -> None:
    assert read_messages(text) == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"role": "user", "content": "a"}', "begins like messages but is no JSON list"),
        ("[{'role': 'user', 'content': 'a'}]", "begins like messages but is no JSON list"),  # as Python prints it
        ('[{"role": "user", "content": "a"}] and more', "begins like messages but is no JSON list"),
        ('{"role": "user", "content": "a"}', r"expected messages as a JSON list"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"expected messages as a JSON list"),
        ('[{"role": "user"}]', "a role and a content"),
        ('[{"role": "user", "content": 3}]', "a role and a content"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "last message from the user"),
    ],
)
def test_what_begins_like_messages_and_is_none_is_refused(text: str, expected: str) -> None:
    with pytest.raises(MessagesError, match=expected):
        read_messages(text)


@pytest.mark.parametrize(
    ("layout", "column", "rest"),
    [
        ("prompt_answer", "prompt", {"answer": "2"}),
        ("dapo_math", "prompt", {"reward_model": {"ground_truth": "2"}}),
        ("gsm8k", "question", {"answer": "#### 2"}),
    ],
)
def test_every_layout_reads_them_and_names_the_row_that_it_cannot(
    tmp_path: Path, tiny_model_dir: Path, layout: Any, column: str, rest: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    path = write_jsonl(tmp_path / "x.jsonl", [{column: json.dumps(CONVERSATION), **rest}])
    config = DataConfig(train=FileData(source="file", path=str(path), layout=layout))
    (prompt,) = load_prompts(config, tokenizer, max_prompt_tokens=100)
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    write_jsonl(path, [{column: "ok", **rest}, {column: "[{'role': 'user', 'content': 'a'}]", **rest}])
    with pytest.raises(ConfigError, match=rf"x\.jsonl line 2: column '{column}': the text begins like messages"):
        load_prompts(config, tokenizer, max_prompt_tokens=100)
