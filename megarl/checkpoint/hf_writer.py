"""Writing Hugging Face checkpoints that `AutoModelForCausalLM.from_pretrained` loads.

Invariants: the destination appears complete or not at all (written beside it, flushed to disk, renamed); it holds
exactly the tensors that config.json describes; memory is bounded by one shard.
"""

import fnmatch
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megarl.checkpoint.errors import CheckpointError
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

COPIED_FILES = (
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
"""What a checkpoint needs besides weights and config.json, copied from the source as it is."""


def save_hf_checkpoint(
    path: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source: str | Path,
    dtype: torch.dtype,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write `tensors` as a checkpoint directory `path`, with config and tokenizer of the checkpoint `source`.

    Tensors may come in any order, on any device, each once; they are copied as they come, so their storage may be
    reused. Weights are converted to `dtype`, which config.json then names. More than `max_shard_bytes` are split over
    files with an index. Raises CheckpointError when `path` exists and is not empty, and when names or shapes are not
    those of `source`'s config.json; nothing is left at `path` then. Returns `path`.
    """
    destination, origin = Path(path), Path(source)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists and is not empty; remove it or write to another path")
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"expected a dtype of {sorted(DTYPE_NAMES.values())}, found {dtype}; choose one of them")
    if max_shard_bytes < 1:
        raise CheckpointError(f"expected max_shard_bytes of at least 1, found {max_shard_bytes}; raise it")
    expected = hf_tensors(read_model_shape(origin))
    # One fixed name: what a killed run left is overwritten by the next, not collected.
    partial = destination.with_name(f".{destination.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        _write_weights(partial, tensors, expected=expected, dtype=dtype, max_shard_bytes=max_shard_bytes)
        _write_config(partial, origin, dtype)
        _copy_tokenizer(partial, origin)
        for file in partial.glob("*.safetensors"):
            # safetensors makes files only their owner can read; a checkpoint is as readable as its config.
            shutil.copymode(partial / "config.json", file)
        _flush_directory(partial)
        os.replace(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(destination.parent)
    return destination


def _write_weights(
    directory: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    expected: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    shard_bytes = total_bytes = 0

    def write_shard() -> None:
        save_file(shard, directory / f"{len(shards)}.shard", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    seen: set[str] = set()
    for name, tensor in tensors:
        _check_tensor(name, tensor, expected, seen)
        seen.add(name)
        num_bytes = tensor.numel() * dtype.itemsize
        if shard and shard_bytes + num_bytes > max_shard_bytes:
            write_shard()
            shard_bytes = 0
        shard[name] = tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
        shard_bytes += num_bytes
        total_bytes += num_bytes
    missing = [name for name in expected if name not in seen]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(expected)} tensors were not given: {', '.join(missing[:8])}; export every rank"
        )
    write_shard()
    _name_shards(directory, shards, total_bytes)


def _check_tensor(name: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]], seen: set[str]) -> None:
    if name not in expected:
        raise CheckpointError(f"{name} is no tensor of the source's config.json; leave it out or correct the source")
    if name in seen:
        raise CheckpointError(f"{name} was given twice; export each tensor from one rank")
    if tuple(tensor.shape) != expected[name]:
        raise CheckpointError(
            f"{name}: expected shape {expected[name]} by the source's config.json, found {tuple(tensor.shape)}; "
            "was vocabulary padding removed, and is the source this model's?"
        )


def _name_shards(directory: Path, shards: list[list[str]], total_bytes: int) -> None:
    """The number of files is in their names, so names are given when the last is written."""
    if len(shards) == 1:
        (directory / "0.shard").rename(directory / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{index}.shard").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / INDEX_FILE, content)


def _write_config(directory: Path, source: Path, dtype: torch.dtype) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # transformers 5 writes `dtype`, 4 `torch_dtype`; the key that is there stays, and both if both are.
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    _write_json(directory / "config.json", config | dict.fromkeys(keys, DTYPE_NAMES[dtype]))


def _copy_tokenizer(directory: Path, source: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in COPIED_FILES):
            shutil.copyfile(file, directory / file.name)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush_directory(directory: Path) -> None:
    """Everything below is on the disk before the directory gets its name."""
    for file in directory.iterdir():
        _flush(file)
    _flush(directory)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
