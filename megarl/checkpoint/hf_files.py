"""What a Hugging Face checkpoint has besides weights: config, tokenizer, generation config, chat templates."""

import fnmatch
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from megarl.checkpoint.dist_writer import FileRecord, checksum_of
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.new_directory import flush

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    # SentencePiece under whatever name, tiktoken, and the code of a tokenizer that is none of transformers'.
    *("*.model", "*.tiktoken", "tokenization_*.py"),
    *("chat_template.*", "additional_chat_templates/*.jinja"),
    *("preprocessor_config.json", "processor_config.json"),
    # A model is passed on with its terms.
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""Copied from the source as they are; config.json besides."""

HF_DIRECTORY = "hf"
"""Where a checkpoint that is none of Hugging Face's keeps these files of its model."""


def add_hf_files(source: Path, checkpoint: Path, *, dtypes: Iterable[torch.dtype]) -> dict[str, FileRecord]:
    """Copy them into `hf/` of another kind of checkpoint, so that it can become one of Hugging Face's again.

    They are on the disk then. Returns the record of each by its name within the checkpoint.
    """
    directory = checkpoint / HF_DIRECTORY
    directory.mkdir()
    copy_hf_files(source, directory, dtypes=dtypes)
    paths = sorted(directory.rglob("*"))
    for path in (*paths, directory):
        flush(path)
    return {
        file.relative_to(checkpoint).as_posix(): {"bytes": file.stat().st_size, "checksum": checksum_of(file)}
        for file in paths
        if file.is_file()
    }


def copy_hf_files(source: Path, directory: Path, *, dtypes: Iterable[torch.dtype]) -> None:
    """Copy config.json and the tokenizer's files from one directory into another, which exists.

    config.json is copied as it is, but for the dtype of the weights where they have one and it names another. Links are
    followed. Raises CheckpointError where a file cannot be read, OSError where one cannot be written.
    """
    content = _read(source / "config.json")
    config = json.loads(content)
    found = set(dtypes)
    name = DTYPE_NAMES.get(found.pop()) if len(found) == 1 else None
    # transformers 5 writes `dtype`, 4 `torch_dtype`; the key that is there stays, and both if both are.
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    if name is not None and any(config.get(key) != name for key in keys):
        text = json.dumps(config | dict.fromkeys(keys, name), indent=2)
        content = f"{text}\n".encode()
    (directory / "config.json").write_bytes(content)
    for file in _companions(source):
        copy = directory / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(_read(file))


def _companions(source: Path) -> Iterator[Path]:
    for pattern in _COPIED:
        place, _, name = pattern.rpartition("/")
        try:
            entries = sorted((source / place).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CheckpointError(f"{source / place} cannot be read ({error.strerror}); make it readable") from error
        yield from (file for file in entries if fnmatch.fnmatchcase(file.name, name) and not file.is_dir())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        link = f", a link to {file.readlink()}," if file.is_symlink() else ""
        raise CheckpointError(f"{file}{link} cannot be read ({error.strerror}); restore it, or remove it") from error
