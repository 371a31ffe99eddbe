"""safetensors files that are written piece by piece, in any order and by several processes.

The header of such a file says where each tensor lies, so that the files can be made with their full size before the
first tensor is there. Invariant: a file is, byte for byte, what safetensors' own `save_file` makes of the same tensors
(https://huggingface.co/docs/safetensors, format; the order of tensors is that of its `prepare`).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megarl.models.boxes import Box

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

SHARD_BYTES = 5_000_000_000

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By safetensors' names, in the order in which it puts tensors into a file."""

_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorKind:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    begin: int
    kind: TensorKind


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which tensor lies where in which file."""

    headers: dict[str, bytes]
    sizes: dict[str, int]
    """Of each file, its header included."""
    places: dict[str, _Place]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())


def plan_shards(tensors: Mapping[str, TensorKind], *, max_bytes: int = SHARD_BYTES) -> ShardPlan:
    """Files of at most `max_bytes`, filled in the order of `tensors`; a larger tensor has a file of its own."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, kind in tensors.items():
        if shards[-1] and kind.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= kind.num_bytes
    plan = ShardPlan({}, {}, {})
    for index, names in enumerate(shards):
        single = len(shards) == 1
        file = SINGLE_FILE if single else f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        _plan_file(plan, file, {name: tensors[name] for name in names})
    return plan


def _plan_file(plan: ShardPlan, file: str, tensors: Mapping[str, TensorKind]) -> None:
    order = list(FLOAT_DTYPES.values())
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name.encode()))
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name in names:
        begins[name], end = end, end + tensors[name].num_bytes
        described[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    plan.headers[file] = len(text).to_bytes(8, "little") + text
    plan.sizes[file] = len(plan.headers[file]) + end
    for name, begin in begins.items():
        plan.places[name] = _Place(file, len(plan.headers[file]) + begin, tensors[name])


def create_shards(directory: Path, plan: ShardPlan) -> None:
    """Make the plan's files, of their full size, and the index where there are several."""
    for file, header in plan.headers.items():
        with (directory / file).open("xb") as stream:
            stream.write(header)
            stream.truncate(plan.sizes[file])
    if len(plan.headers) == 1:
        return
    kinds = [place.kind for place in plan.places.values()]
    content = {
        "metadata": {
            "total_parameters": sum(math.prod(kind.shape) for kind in kinds),
            "total_size": sum(kind.num_bytes for kind in kinds),
        },
        "weight_map": {name: place.file for name, place in sorted(plan.places.items())},
    }
    (directory / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_box(directory: Path, plan: ShardPlan, box: Box, values: Tensor) -> None:
    """Write whole rows of a tensor, converted to the plan's dtype.

    Raises OSError where it cannot be written, ValueError for a box that is no run of rows.
    """
    place = plan.places[box.tensor]
    shape = place.kind.shape
    if not box.fits(shape) or box.shape[1:] != shape[1:] or tuple(values.shape) != box.shape:
        raise ValueError(f"{tuple(values.shape)} are no rows of {box.tensor} {shape}: {box}")
    row_bytes = math.prod(shape[1:]) * place.kind.dtype.itemsize
    position = place.begin + box.start[0] * row_bytes
    values = values.detach().to(device="cpu", dtype=place.kind.dtype).contiguous()
    view = values.reshape(-1).view(torch.uint8).numpy().data
    descriptor = os.open(directory / place.file, os.O_WRONLY)
    try:
        while view:
            written = os.pwrite(descriptor, view, position)
            view, position = view[written:], position + written
    finally:
        os.close(descriptor)
