"""Tokenizer directories."""

import shutil
from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.data.tokenizer import load_tokenizer


@pytest.fixture
def checkpoint(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def test_paths_without_a_tokenizer_are_errors(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="expected a checkpoint directory on this machine, found nothing"):
        load_tokenizer("Qwen/Qwen2.5-0.5B")
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        load_tokenizer(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer there; expected one of tokenizer\.json.*found config\.json"):
        load_tokenizer(checkpoint)
