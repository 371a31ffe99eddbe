"""What ends a response: the chat template's end of turn, the checkpoint's own tokens, and the configuration's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig, ReasoningGymData
from megarl.config.loader import load_config
from megarl.config.rollout import RolloutConfig
from megarl.data.stops import StopConditions, load_stops, read_embedding_rows
from megarl.data.tokenizer import load_tokenizer
from tests.data import templates
from tests.data.templates import make_tokenizer, write_model_files

PAPERS = sorted((Path(__file__).parents[2] / "configs" / "papers").glob("*.toml"))


@pytest.fixture
def checkpoint(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def stops_of(path: Path, tokenizer: Any, *, rollout: dict[str, Any] | None = None, **data: Any) -> StopConditions:
    config = DataConfig(train=ReasoningGymData(task="chain_sum"), date="2026-11-27", **data)
    return load_stops(path, tokenizer, data=config, rollout=RolloutConfig(**(rollout or {})))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("CHATML", "<|im_end|>"),
        ("QWEN3", "<|im_end|>"),
        ("GENERATION", "<|im_end|>"),
        ("LLAMA32", "<|eot_id|>"),
        ("LLAMA2", "</s>"),
        ("MISTRAL", "</s>"),
        ("GEMMA", "<end_of_turn>"),
        ("R1", "<｜end▁of▁sentence｜>"),
    ],
)
def test_the_templates_end_of_turn_stops(tmp_path: Path, name: str, end: str) -> None:
    """Whatever the checkpoint declares: here nothing but the tokenizer's eos_token."""
    tokenizer = make_tokenizer(getattr(templates, name))
    stops = stops_of(write_model_files(tmp_path, tokenizer), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(token) for token in stops.token_ids] == list(
        dict.fromkeys([end, tokenizer.eos_token])
    )
    assert stops.sources[stops.frame.end_id].startswith("the chat template's end of turn")  # type: ignore[index]
    assert stops.untold is None


def test_base_model_with_chatml_that_declares_only_endoftext(checkpoint: Path) -> None:
    """Qwen2.5's base models: every declared end is <|endoftext|>, and the template ends turns with <|im_end|>."""
    edit(checkpoint / "tokenizer_config.json", eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(checkpoint)
    end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    edit(checkpoint / "generation_config.json", eos_token_id=text_end)
    edit(checkpoint / "config.json", eos_token_id=text_end)
    stops = stops_of(checkpoint, tokenizer)
    assert stops.token_ids == (end, text_end)
    assert stops.describe() == (
        f"<|im_end|> (id {end}): the chat template's end of turn",
        f"<|endoftext|> (id {text_end}): eos_token_id of generation_config.json, the tokenizer's eos_token",
    )
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (text_end,)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_base_models_turn_ends_under_every_papers_configuration(tmp_path: Path, path: Path) -> None:
    config = load_config(path)
    llama = "llama" in path.stem
    tokenizer = make_tokenizer(templates.LLAMA32 if llama else templates.CHATML)
    data = config.data.model_copy(update={"date": "2026-11-27"})
    stops = load_stops(write_model_files(tmp_path, tokenizer), tokenizer, data=data, rollout=config.rollout)
    names = [tokenizer.convert_ids_to_tokens(token) for token in stops.token_ids]
    if config.data.chat_template:
        assert names[0] == ("<|eot_id|>" if llama else "<|im_end|>")
    assert tokenizer.eos_token in names


def test_the_checkpoints_own_stops_come_from_the_most_specific_file(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (end, text_end)
    edit(checkpoint / "generation_config.json", eos_token_id=text_end)
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (text_end, end)
    edit(checkpoint / "generation_config.json", eos_token_id=None)
    edit(checkpoint / "config.json", eos_token_id=[7, text_end])
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (7, text_end, end)
    (checkpoint / "generation_config.json").unlink()
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (7, text_end, end)
    edit(checkpoint / "config.json", eos_token_id=None)
    assert stops_of(checkpoint, tokenizer, chat_template=False).token_ids == (end,)


def test_the_configurations_tokens_and_strings(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    own = {"stop_token_ids": [newline], "stop_strings": ["\nQuestion:"]}
    stops = stops_of(checkpoint, tokenizer, rollout=own)
    assert stops.token_ids[-1] == newline
    assert stops.strings == ("\nQuestion:",)
    # A line a stop, also of a token that is a line's end.
    assert stops.describe()[-2] == f"'\\n' (id {newline}): rollout.stop_token_ids"
    assert stops.describe()[-1].startswith("the text '\\nQuestion:': rollout.stop_strings; its tokens are kept, are in")


@pytest.mark.parametrize("source", ["generation_config.json", "config.json", "rollout"])
@pytest.mark.parametrize("token", [100_000, -1])
def test_a_token_that_the_tokenizer_lacks_is_an_error(checkpoint: Path, source: str, token: int) -> None:
    tokenizer = load_tokenizer(checkpoint)
    if source == "rollout":
        where = "rollout.stop_token_ids"
    else:
        (checkpoint / "generation_config.json").unlink()
        (checkpoint / source).touch()
        edit_or_write(checkpoint / source, eos_token_id=[2, token])
        where = f"eos_token_id of {source}"
    own = {"stop_token_ids": [token]} if source == "rollout" else {}
    with pytest.raises(ConfigError, match=rf"stop token {token} \({where}\) is none of the tokenizer's \d+ tokens"):
        stops_of(checkpoint, tokenizer, rollout=own)


def edit_or_write(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text() or "{}"), **changes}))


def test_a_stop_outside_the_embedding_is_an_error(tmp_path: Path) -> None:
    """ChatML's tokens added to a tokenizer whose model was never resized. A larger embedding is only padded."""
    tokenizer = make_tokenizer(templates.LLAMA32)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    with pytest.raises(
        ConfigError, match=rf"'<\|eot_id\|>' \(id {end}; the chat template's end of turn\) is outside .*{end} rows"
    ):
        stops_of(write_model_files(tmp_path, tokenizer, rows=end), tokenizer)
    assert stops_of(write_model_files(tmp_path, tokenizer, rows=1000), tokenizer).token_ids[0] == end
    assert read_embedding_rows(tmp_path) == 1000


def test_files_that_cannot_say_are_errors(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    edit(checkpoint / "generation_config.json", eos_token_id="<|im_end|>")
    with pytest.raises(ConfigError, match="eos_token_id must be an integer"):
        stops_of(checkpoint, tokenizer)
    (checkpoint / "generation_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"generation_config\.json: expected a JSON object, found list"):
        stops_of(checkpoint, tokenizer)
    (checkpoint / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: expected a JSON object"):
        stops_of(checkpoint, tokenizer)


def test_nothing_that_stops_is_an_error_but_a_string_is_enough(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.OPEN)
    tokenizer.eos_token = None
    path = write_model_files(tmp_path, tokenizer)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        stops_of(path, tokenizer)
    assert stops_of(path, tokenizer, rollout={"stop_strings": ["###"]}).token_ids == ()


def test_a_turn_that_ends_with_text_asks_for_a_stop_string(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.PLAIN)
    path = write_model_files(tmp_path, tokenizer)
    stops = stops_of(path, tokenizer)
    assert stops.untold == "\n### End\n"
    assert stops.describe()[-1] == (
        "nothing in '\\n### End\\n', the text with which the chat template ends a turn: it is no token; set "
        "rollout.stop_strings"
    )
    assert stops_of(path, tokenizer, rollout={"stop_strings": ["### End"]}).untold is None


def test_a_template_that_hides_answers_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("{{ messages[0]['content'] }}", tokens=templates.CHATML)
    with pytest.raises(ConfigError, match="does not show an assistant's answer"):
        stops_of(write_model_files(tmp_path, tokenizer), tokenizer)
