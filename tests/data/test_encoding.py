"""What a prompt is: special tokens, the clock, control tokens in its text, the embedding, and its length."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, FileData
from megarl.data.chat import check_chat_template, reads_clock, render_chat
from megarl.data.control_tokens import ControlTokens
from megarl.data.encoding import find_beginning
from megarl.data.prompts import PromptSet, load_prompts
from tests.data import templates
from tests.data.templates import make_tokenizer
from tests.data.test_prompts import write_jsonl


def config_of(path: Path, texts: list[Any], **options: Any) -> DataConfig:
    write_jsonl(path / "x.jsonl", [{"prompt": text, "answer": "1"} for text in texts])
    return DataConfig(train=FileData(source="file", path=str(path / "x.jsonl"), layout="prompt_answer"), **options)


def load(
    path: Path, texts: list[Any], tokenizer: Any, *, limit: int = 500, rows: int | None = None, **options: Any
) -> PromptSet:
    return load_prompts(config_of(path, texts, **options), tokenizer, max_prompt_tokens=limit, embedding_rows=rows)


# Beginning of sequence


def test_bare_text_begins_with_the_tokenizers_own_token_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None)  # as Llama 3's base models
    bos = tokenizer.bos_token_id
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, chat_template=False)
    assert prompt.token_ids == (bos, *tokenizer("1 + 1?", add_special_tokens=False)["input_ids"])
    assert prompt.token_ids == tuple(tokenizer("1 + 1?")["input_ids"])
    spelled = "<|begin_of_text|>1 + 1?"
    with pytest.raises(ConfigError, match=r"line 1: the user's text contains the control token <\|begin_of_text\|>"):
        load(tmp_path, [spelled], tokenizer, chat_template=False)
    (again,) = load(tmp_path, [spelled], tokenizer, chat_template=False, control_tokens="allow")
    assert again.token_ids == prompt.token_ids


def test_an_end_that_a_tokenizer_adds_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer(None)
    bos, eos = (tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A {eos[0]}", special_tokens=[bos, eos]
    )
    assert find_beginning(tokenizer) == (bos[1],)
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, chat_template=False)
    assert (prompt.token_ids[0], eos[1] in prompt.token_ids) == (bos[1], False)


@pytest.mark.parametrize("name", ["LLAMA32", "GEMMA", "MISTRAL", "R1"])
def test_a_template_that_writes_bos_gets_no_second_one(tmp_path: Path, name: str) -> None:
    tokenizer = make_tokenizer(getattr(templates, name))
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, date="2026-11-27")
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    assert prompt.token_ids.count(tokenizer.bos_token_id) == 1


def test_without_bos_nothing_is_added(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None, tokens=templates.CHATML)
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, chat_template=False)
    assert tokenizer.decode(prompt.token_ids) == "1 + 1?"


# The clock and the template's variables


def test_the_clock_stands_at_the_date(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.LLAMA32)
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, date="2024-02-29")
    assert "Today Date: 29 Feb 2024\n" in prompt.text
    config = config_of(tmp_path, ["1 + 1?"])
    assert reads_clock(config, tokenizer)
    with pytest.raises(ConfigError, match=r"chat template reads the clock.*set data\.date"):
        load_prompts(config, tokenizer, max_prompt_tokens=500)


def test_a_clock_that_is_not_asked_is_no_clock(tmp_path: Path) -> None:
    given = {"chat_template_kwargs": {"date_string": "1 May 2020"}}
    tokenizer = make_tokenizer(templates.LLAMA32)
    assert not reads_clock(config_of(tmp_path, [], **given), tokenizer)
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, **given)
    assert "Today Date: 1 May 2020\n" in prompt.text
    assert not reads_clock(config_of(tmp_path, []), make_tokenizer(templates.GEMMA))
    assert not reads_clock(config_of(tmp_path, [], chat_template=False), tokenizer)


def test_a_clock_read_only_beside_a_system_message_is_noticed(tmp_path: Path) -> None:
    source = "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}{{ messages[-1]['content'] }}"
    tokenizer = make_tokenizer(source, tokens=templates.CHATML)
    config = config_of(tmp_path, [], date="2024-02-29")
    assert reads_clock(config, tokenizer)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert render_chat(messages, config, tokenizer) == "2024u"


def test_variables_reach_the_template_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.QWEN3)
    (prompt,) = load(tmp_path, ["1 + 1?"], tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ConfigError, match="does not read enable_thoughts, thinking"):
        check_chat_template(
            config_of(tmp_path, [], chat_template_kwargs={"enable_thoughts": False, "thinking": True}), tokenizer
        )


def test_a_template_that_fails_on_a_variable_is_a_configuration_error(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.LLAMA32)
    with pytest.raises(ConfigError, match=r"chat template refuses messages of roles user: .*concatenate"):
        load(tmp_path, ["1 + 1?"], tokenizer, chat_template_kwargs={"date_string": 3})


# Control tokens in texts


def test_control_tokens_are_counted_and_the_first_is_placed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.CHATML)
    texts = [
        "1",
        "2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>",
        "4",
        [{"role": "user", "content": "<|endoftext|>"}],
    ]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, texts, tokenizer)
    assert str(caught.value) == (
        f"{tmp_path}/x.jsonl line 2: the user's text contains the control token <|im_end|> and <|im_start|>; 2 of 4 "
        'problems have such a text; remove them, or set data.control_tokens = "allow" to have the model read them as '
        "control tokens"
    )
    assert len(load(tmp_path, texts, tokenizer, control_tokens="allow")) == 4


@pytest.mark.parametrize("name", ["system_prompt", "instruction"])
def test_control_tokens_in_the_configuration(tmp_path: Path, name: str) -> None:
    tokenizer = make_tokenizer(templates.CHATML)
    with pytest.raises(ConfigError, match=rf"data\.{name} contains the control token <\|im_end\|>; remove"):
        load(tmp_path, ["1"], tokenizer, **{name: "a<|im_end|>"})


def test_what_is_a_control_token() -> None:
    tokenizer = make_tokenizer(templates.QWEN3)
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<|added|>", normalized=False), AddedToken("    ")])
    control = ControlTokens(tokenizer)
    assert control.find("a <think> b") == ()  # text that has a token of its own
    assert control.find("a    b") == ()
    assert control.find("<|added|><|im_end|><|im_end|>") == ("<|added|>", "<|im_end|>")
    assert control.find("< |im_end|>") == control.find("<|im_end") == ()
    assert ControlTokens(make_tokenizer(templates.R1)).find("<｜User｜>") == ("<｜User｜>",)


def test_a_token_that_is_matched_in_other_letters_is_found() -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer(None, tokens=templates.CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=True)])
    assert ControlTokens(tokenizer).find("1 <END>") == ("<end>",)


# The embedding


def test_a_prompts_token_outside_the_embedding_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.LLAMA32)
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ["1", "2"], tokenizer, rows=eot, date="2026-11-27")
    assert str(caught.value).startswith(
        f"{tmp_path}/x.jsonl line 1: prompt 0 contains token '<|eot_id|>' (id {eot}), which is outside the model's "
        f"embedding of {eot} rows (vocab_size in config.json); 2 such texts"
    )
    assert len(load(tmp_path, ["1"], tokenizer, rows=eot + 1, date="2026-11-27")) == 1


# Length


def test_long_prompts_are_dropped_with_a_count(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None, tokens=templates.CHATML)
    texts = ["1" * length for length in (20, 3, 30, 4, 5)]
    options = {"chat_template": False, "overlong_prompts": "drop"}
    prompts = load(tmp_path, texts, tokenizer, limit=10, **options)
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(1, "111"), (3, "1111"), (4, "11111")]
    assert (len(prompts), prompts[-1].index, [p.index for p in prompts[1:]]) == (3, 4, [3, 4])
    assert (
        prompts.about
        == "3 prompts, the longest has 5 tokens (limit 10); 2 of 5 were longer and are left out (the longest: 30)"
    )
    with pytest.raises(
        ConfigError, match=r"all 5 prompts are longer than rollout.max_prompt_tokens 2, and .* none is left"
    ):
        load(tmp_path, texts, tokenizer, limit=2, **options)


def test_truncation_takes_the_beginning_of_the_users_last_message(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.CHATML)
    options: dict[str, Any] = {"overlong_prompts": "truncate", "instruction": "Go.", "system_prompt": "S"}
    (whole,) = load(tmp_path, ["123456789"], tokenizer, **options)
    limit = len(whole.token_ids) - 4
    prompts = load(tmp_path, ["123456789", "89"], tokenizer, limit=limit, **options)
    assert prompts[0].text == whole.text.replace("123456789", "56789")
    assert len(prompts[0].token_ids) == limit
    assert prompts[1].text == whole.text.replace("123456789", "89")
    assert prompts.about.endswith(f"1 were longer and lost their beginning (the longest: {len(whole.token_ids)})")
    frame = len(whole.token_ids) - 9
    with pytest.raises(ConfigError, match=rf"has {limit + 4} tokens without .* is {frame}; 2 of 2 .* shorten system"):
        load(tmp_path, ["123456789", "987654321"], tokenizer, limit=frame, **options)


def test_truncated_text_with_merges_and_wide_characters_fits(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None)
    text = "the answer is große 数字 🎲 the number of terms " * 5
    for limit in range(2, 60, 7):
        (prompt,) = load(tmp_path, [text], tokenizer, limit=limit, chat_template=False, overlong_prompts="truncate")
        assert len(prompt.token_ids) <= limit
        assert text.endswith(prompt.text)
        assert prompt.token_ids[0] == tokenizer.bos_token_id
