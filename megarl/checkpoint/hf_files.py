"""What a Hugging Face checkpoint has besides weights: config, tokenizer, generation config, chat template."""

import fnmatch
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from megarl.checkpoint.dist_writer import FileRecord, checksum_of
from megarl.checkpoint.new_directory import flush

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
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
    files = sorted(directory.iterdir())
    for path in (*files, directory):
        flush(path)
    return {
        f"{HF_DIRECTORY}/{file.name}": {"bytes": file.stat().st_size, "checksum": checksum_of(file)} for file in files
    }


def copy_hf_files(source: Path, directory: Path, *, dtypes: Iterable[torch.dtype]) -> None:
    """Copy config.json and the tokenizer's files from one directory into another, which exists.

    config.json is copied as it is, but for the dtype of the weights where they have one and it names another.
    """
    content = (source / "config.json").read_bytes()
    config = json.loads(content)
    found = set(dtypes)
    name = DTYPE_NAMES.get(found.pop()) if len(found) == 1 else None
    # transformers 5 writes `dtype`, 4 `torch_dtype`; the key that is there stays, and both if both are.
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    if name is not None and any(config.get(key) != name for key in keys):
        text = json.dumps(config | dict.fromkeys(keys, name), indent=2, ensure_ascii=False)
        content = f"{text}\n".encode()
    (directory / "config.json").write_bytes(content)
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _COPIED):
            shutil.copyfile(file, directory / file.name)
