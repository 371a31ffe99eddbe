"""The tokenizer of a checkpoint directory.

Nothing is downloaded: a path that is not a directory on this machine is an error.
"""

from pathlib import Path
from typing import Any

from megarl.config.base import ConfigError

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a Hugging Face checkpoint directory; ConfigError where there is none."""
    directory = _checkpoint_directory(path)
    # Without these transformers makes up an empty tokenizer from config.json's model type.
    if not any((directory / name).exists() for name in _VOCABULARY_FILES):
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())) or "no file"
        raise ConfigError(
            f"model.path {directory}: no tokenizer there; expected one of {', '.join(_VOCABULARY_FILES)} (and "
            f"tokenizer_config.json), found {found}"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model.path {directory}: the tokenizer cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.path {directory}: {type(tokenizer).__name__} is not a fast tokenizer; convert it to tokenizer.json"
        )
    return tokenizer


def _checkpoint_directory(path: str | Path) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ConfigError(f"model.path {directory}: expected a checkpoint directory on this machine, found {found}")
    return directory
