"""Writing Hugging Face checkpoints that `AutoModelForCausalLM.from_pretrained` loads.

Invariants: the destination appears complete or not at all; it holds exactly the tensors that config.json describes;
memory is bounded by one tensor.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_files import DTYPE_NAMES, copy_hf_files
from megarl.checkpoint.hf_shards import SHARD_BYTES, TensorKind, create_shards, plan_shards, write_box
from megarl.checkpoint.new_directory import new_directory
from megarl.models.boxes import Box
from megarl.models.families import read_model_shape
from megarl.models.table import hf_tensors


def save_hf_checkpoint(
    path: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source: str | Path,
    dtype: torch.dtype,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `tensors` as a checkpoint directory `path`, with config and tokenizer of the checkpoint `source`.

    Tensors may come in any order, on any device, each once; they are written as they come, so their storage may be
    reused. Weights are converted to `dtype`, which config.json then names. More than `max_shard_bytes` are split over
    files with an index. Raises CheckpointError when `path` exists and is not empty, and when names or shapes are not
    those of `source`'s config.json; nothing is left at `path` then. Returns `path`.
    """
    destination, origin = Path(path), Path(source)
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"expected a dtype of {sorted(DTYPE_NAMES.values())}, found {dtype}; choose one of them")
    if max_shard_bytes < 1:
        raise CheckpointError(f"expected max_shard_bytes of at least 1, found {max_shard_bytes}; raise it")
    expected = hf_tensors(read_model_shape(origin))
    plan = plan_shards({name: TensorKind(dims, dtype) for name, dims in expected.items()}, max_bytes=max_shard_bytes)
    with new_directory(destination, num_bytes=plan.num_bytes) as partial:
        create_shards(partial, plan)
        seen: set[str] = set()
        for name, tensor in tensors:
            _check_tensor(name, tensor, expected, seen)
            seen.add(name)
            write_box(partial, plan, Box(name, (0,) * tensor.dim(), tuple(tensor.shape)), tensor)
        missing = [name for name in expected if name not in seen]
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(expected)} tensors were not given: {', '.join(missing[:8])}; export every rank"
            )
        copy_hf_files(origin, partial, dtypes=[dtype])
    return destination


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
