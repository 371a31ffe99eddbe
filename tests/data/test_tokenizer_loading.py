"""Tokenizer directories and the tokens that end a response."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.data.tokenizer import load_stop_token_ids, load_tokenizer


@pytest.fixture
def checkpoint(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_stop_tokens_come_from_the_most_specific_file(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    end, text_end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert load_stop_token_ids(checkpoint, tokenizer) == (end, text_end)
    edit(checkpoint / "generation_config.json", eos_token_id=text_end)
    assert load_stop_token_ids(checkpoint, tokenizer) == (text_end, end)
    edit(checkpoint / "generation_config.json", eos_token_id=None)
    edit(checkpoint / "config.json", eos_token_id=[7, text_end])
    assert load_stop_token_ids(checkpoint, tokenizer) == (7, text_end, end)
    (checkpoint / "generation_config.json").unlink()
    assert load_stop_token_ids(checkpoint, tokenizer) == (7, text_end, end)
    edit(checkpoint / "config.json", eos_token_id=None)
    assert load_stop_token_ids(checkpoint, tokenizer) == (end,)


def test_no_or_impossible_stop_tokens_are_errors(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    edit(checkpoint / "generation_config.json", eos_token_id=[100_000])
    with pytest.raises(ConfigError, match=r"ids \[100000\] are outside the tokenizer's \d+ tokens"):
        load_stop_token_ids(checkpoint, tokenizer)
    edit(checkpoint / "generation_config.json", eos_token_id="<|im_end|>")
    with pytest.raises(ConfigError, match="eos_token_id must be an integer"):
        load_stop_token_ids(checkpoint, tokenizer)
    edit(checkpoint / "generation_config.json", eos_token_id=None)
    edit(checkpoint / "config.json", eos_token_id=None)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load_stop_token_ids(checkpoint, tokenizer)


def test_paths_without_a_tokenizer_are_errors(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="expected a checkpoint directory on this machine, found nothing"):
        load_tokenizer("Qwen/Qwen2.5-0.5B")
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        load_tokenizer(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer there; expected one of tokenizer\.json.*found config\.json"):
        load_tokenizer(checkpoint)
