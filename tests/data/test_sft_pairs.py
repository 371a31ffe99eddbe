"""Supervised pairs from the same sources as the prompts."""

from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData, ReasoningGymData
from megarl.data.prompts import load_prompts
from megarl.data.sft import PairSet, load_pairs
from megarl.data.tokenizer import load_tokenizer
from tests.data.test_prompts import DAPO_ROWS, GSM8K_ROWS, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def load(config: DataConfig, tokenizer: Any, *, max_response_tokens: int = 200) -> PairSet:
    return load_pairs(config, tokenizer, max_prompt_tokens=500, max_response_tokens=max_response_tokens)


def test_reasoning_gym_pairs_share_the_prompts_of_rl(tokenizer: Any) -> None:
    config = DataConfig(train=ReasoningGymData(task="chain_sum", size=20), instruction="Answer.")
    prompts = load_prompts(config, tokenizer, max_prompt_tokens=500)
    pairs = load(config, tokenizer)
    assert len(pairs) == 20
    assert list(pairs) == pairs[:]
    for prompt, (prompt_ids, response_ids) in zip(prompts, pairs, strict=True):
        assert prompt_ids == prompt.token_ids
        assert tokenizer.decode(response_ids) == prompt.answer + "<|im_end|>"
        assert response_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("rows", "layout", "expected"),
    [(GSM8K_ROWS, "gsm8k", GSM8K_ROWS[0]["answer"]), (DAPO_ROWS, "dapo_math", "2")],
)
def test_file_pairs_answer_with_the_source(
    tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], layout: Any, expected: str
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    pairs = load(DataConfig(train=FileData(source="file", path=str(path), layout=layout)), tokenizer)
    assert tokenizer.decode(pairs[0][1]) == expected + "<|im_end|>"


def test_too_long_or_empty_answers_are_errors(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "123"}])
    config = DataConfig(train=FileData(source="file", path=str(path), layout="prompt_answer"))
    assert len(load(config, tokenizer, max_response_tokens=4)) == 2
    with pytest.raises(ConfigError, match=r"the answer of pair 1 has 4 tokens, rollout\.max_response_tokens is 3"):
        load(config, tokenizer, max_response_tokens=3)
    with pytest.raises(ConfigError, match=r"the prompt of pair 0 has \d+ tokens, rollout\.max_prompt_tokens is 2"):
        load_pairs(config, tokenizer, max_prompt_tokens=2, max_response_tokens=9)
    write_jsonl(path, [{"prompt": "a", "answer": ""}])
    with pytest.raises(ConfigError, match="the answer of pair 0 is empty"):
        load(config, tokenizer)
