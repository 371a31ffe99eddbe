"""Supervised pairs from the same sources as the prompts."""

from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData, ReasoningGymData
from megarl.config.rollout import RolloutConfig
from megarl.data.prompts import load_prompts
from megarl.data.sft import PairSet, load_pairs
from megarl.data.stops import load_stops
from megarl.data.tokenizer import load_tokenizer
from tests.data import templates
from tests.data.templates import make_tokenizer
from tests.data.test_prompts import DAPO_ROWS, GSM8K_ROWS, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def load(
    config: DataConfig,
    tokenizer: Any,
    *,
    max_prompt_tokens: int = 500,
    max_response_tokens: int = 200,
    rows: int | None = None,
    **rollout: Any,
) -> PairSet:
    stops = load_stops("unused", tokenizer, data=config, rollout=RolloutConfig(**rollout))
    return load_pairs(
        config,
        tokenizer,
        stops=stops,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        embedding_rows=rows,
    )


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
    with pytest.raises(ConfigError, match=r"line 1: prompt 0 has \d+ tokens, rollout\.max_prompt_tokens is 2; 2 of 2"):
        load(config, tokenizer, max_prompt_tokens=2, max_response_tokens=9)
    write_jsonl(path, [{"prompt": "a", "answer": ""}])
    with pytest.raises(ConfigError, match="the answer of pair 0 is empty"):
        load(config, tokenizer)


def test_all_that_is_wrong_with_answers_is_told_at_once(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "a", "answer": "1"},
        {"prompt": "b", "answer": " "},
        {"prompt": "c", "answer": "123456"},
        {"prompt": "d", "answer": "2<|im_end|>"},
        {"prompt": "e", "answer": "3<|im_start|>"},
    ]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    config = DataConfig(train=FileData(source="file", path=str(path), layout="prompt_answer"))
    with pytest.raises(ConfigError) as caught:
        load(config, tokenizer, max_response_tokens=5)
    empty, long, control = caught.value.problems
    assert empty.startswith(f"{path} line 2: the answer of pair 1 is empty; 1 of 5")
    assert long.startswith(
        f"{path} line 3: the answer of pair 2 has 7 tokens, rollout.max_response_tokens is 5; 1 of 5"
    )
    assert control.startswith(f"{path} line 4: the answer contains the control token <|im_end|>; 2 of 5")
    config = config.model_copy(update={"control_tokens": "allow"})
    write_jsonl(path, rows[3:])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert load(config, tokenizer)[0][1][-2:] == (end, end)


def test_an_answer_outside_the_embedding_names_the_token(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "7", "answer": "7"}, {"prompt": "7", "answer": "tokens"}])
    config = DataConfig(train=FileData(source="file", path=str(path), layout="prompt_answer"), chat_template=False)
    last = max(tokenizer("tokens")["input_ids"])
    assert len(load(config, tokenizer, rows=last + 1)) == 2
    with pytest.raises(
        ConfigError, match=rf"line 2: the answer of pair 1 contains token .* \(id {last}\), which is out"
    ):
        load(config, tokenizer, rows=last)


ENDS = {
    **dict.fromkeys(("CHATML", "QWEN3", "GENERATION"), "<|im_end|>"),
    **dict.fromkeys(("LLAMA2", "MISTRAL"), "</s>"),
    **{"LLAMA32": "<|eot_id|>", "GEMMA": "<end_of_turn>"},
}


@pytest.mark.parametrize("name", ENDS)
def test_a_pair_is_what_the_template_renders_up_to_the_turns_end(tmp_path: Path, name: str) -> None:
    """Prompt and answer together are the template's own conversation, cut after the token that ends the turn."""
    tokenizer = make_tokenizer(getattr(templates, name))
    path = write_jsonl(tmp_path / "x.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}])
    config = DataConfig(train=FileData(source="file", path=str(path), layout="gsm8k"), date="2026-11-27")
    ((prompt, response),) = load(config, tokenizer)
    conversation = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2.\n#### 2"}]
    whole = tokenizer.apply_chat_template(
        conversation, tokenize=False, strftime_now=lambda form: "27 Nov 2026", date_string="27 Nov 2026"
    )
    assert tokenizer.decode(prompt + response) == whole.rstrip("\n")
    assert tokenizer.convert_ids_to_tokens(response[-1]) == ENDS[name]


def test_an_answer_after_an_opened_think_block_continues_the_prompt(tmp_path: Path) -> None:
    """R1's generation prompt opens what a finished turn lacks: the response goes on from the prompt, as in RL."""
    tokenizer = make_tokenizer(templates.R1)
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    config = DataConfig(train=FileData(source="file", path=str(path), layout="prompt_answer"))
    ((prompt, response),) = load(config, tokenizer)
    assert tokenizer.decode(prompt).endswith("<｜Assistant｜><think>\n")
    assert tokenizer.decode(response) == "2<｜end▁of▁sentence｜>"


@pytest.mark.parametrize(
    ("template", "strings", "expected"),
    [
        (templates.PLAIN, ["### End"], "2\n### End"),  # the text that stops a sampled response, and no eos
        (templates.PLAIN, [], "2<|endoftext|>"),
        (templates.OPEN, ["###"], "2<|endoftext|>"),
        (None, ["###"], "2<|end_of_text|>"),
    ],
)
def test_an_answer_ends_as_a_sampled_response_does(
    tmp_path: Path, template: str | None, strings: list[str], expected: str
) -> None:
    tokenizer = make_tokenizer(template)
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    data = FileData(source="file", path=str(path), layout="prompt_answer")
    config = DataConfig(train=data, chat_template=template is not None)
    assert tokenizer.decode(load(config, tokenizer, stop_strings=strings)[0][1]) == expected


def test_without_eos_an_answer_ends_with_what_stops(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None, tokens=templates.PLAIN)
    tokenizer.eos_token = None
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    data = FileData(source="file", path=str(path), layout="prompt_answer")
    config = DataConfig(train=data, chat_template=False)
    assert tokenizer.decode(load(config, tokenizer, stop_strings=["\n\n"])[0][1]) == "2\n\n"
    assert load(config, tokenizer, stop_token_ids=[5], stop_strings=["\n\n"])[0][1][-1] == 5


def test_dropped_prompts_are_no_pairs_and_keep_their_index(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "1" * length, "answer": str(length)} for length in (3, 20, 5, 30, 4)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    data = FileData(source="file", path=str(path), layout="prompt_answer")
    config = DataConfig(train=data, chat_template=False, overlong_prompts="drop")
    pairs = load(config, tokenizer, max_prompt_tokens=10)
    assert [tokenizer.decode(response[:-1]) for _, response in pairs] == ["3", "5", "4"]
    prompts = load_prompts(config, tokenizer, max_prompt_tokens=10)
    experts = pairs.by_prompt_index()
    assert [prompt.index for prompt in prompts] == [0, 2, 4]
    assert all(experts[prompt.index][0] == prompt.token_ids for prompt in prompts)
