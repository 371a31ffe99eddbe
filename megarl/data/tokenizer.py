"""The tokenizer of a checkpoint directory and the tokens at which its model stops.

Nothing is downloaded: a path that is not a directory on this machine is an error.
"""

import json
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


def load_stop_token_ids(path: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a response, the most specific source first, without repeats.

    `generation_config.json`'s eos_token_id (one or a list), where it has none `config.json`'s, then the tokenizer's.
    ConfigError when no source names one, or when one is outside the vocabulary.
    """
    directory = _checkpoint_directory(path)
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        ids = _read_eos(directory / name)
        if ids:
            break
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    unknown = [token for token in ids if not 0 <= token < len(tokenizer)]
    if unknown:
        raise ConfigError(
            f"model.path {directory}: end-of-sequence ids {unknown} are outside the tokenizer's {len(tokenizer)} "
            "tokens; correct eos_token_id in generation_config.json or config.json"
        )
    if not ids:
        raise ConfigError(
            f"model.path {directory}: no end-of-sequence token in generation_config.json, config.json or the "
            "tokenizer; set eos_token_id in generation_config.json, or every response would run to its maximum"
        )
    return tuple(dict.fromkeys(ids))


def _checkpoint_directory(path: str | Path) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ConfigError(f"model.path {directory}: expected a checkpoint directory on this machine, found {found}")
    return directory


def _read_eos(file: Path) -> list[int]:
    if not file.exists():
        return []
    try:
        eos = json.loads(file.read_text()).get("eos_token_id")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ConfigError(f"{file}: expected a JSON object ({error})") from error
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) for token in ids):
        raise ConfigError(f"{file}: eos_token_id must be an integer or a list of them, found {eos!r}")
    return list(ids)
