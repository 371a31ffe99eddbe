"""Where a conversion reads: a checkpoint of either kind, by boxes of Hugging Face tensors or of global tensors.

Invariant: both views give the same elements; what is read is in the dtype it is stored in, and no more of it is in
memory than was asked for, and a block.
"""

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megarl.checkpoint.dist_reader import DistCheckpoint, open_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError, list_by_kind
from megarl.checkpoint.hf import HfCheckpoint, open_hf_checkpoint
from megarl.checkpoint.hf_shards import FLOAT_DTYPES
from megarl.models.boxes import Box
from megarl.models.global_space import GlobalTensor, Link, extra_state_objects, global_space
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors

BESIDE = (
    *("optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.", "optimizer.state.fp32_param."),
    "optimizer.state.param.",
    "reference.",
)
"""What a checkpoint has of a tensor besides the weight itself: the key is one of these before the weight's. `param` are
main weights, as `fp32_param`, where Megatron saves its distributed optimizer as `fully_reshardable`."""

BLOCK_BYTES = 64 << 20
"""Read at a time of a tensor that comes in pieces."""

_PER_LAYER = re.compile(r"\.layers\.\d+\.")

_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
"""What begins so and not as BESIDE says is an optimizer's state as other programs keep it, by buckets and ranks."""


class Source(Protocol):
    """An open checkpoint of a model."""

    shape: ModelShape

    def stored(self) -> dict[str, GlobalTensor]:
        """What there is in the global space, by stored key; a weight's is its own."""

    def dtype_of_key(self, key: str) -> torch.dtype: ...

    def dtype_of_tensor(self, name: str) -> torch.dtype:
        """Of a Hugging Face tensor."""

    def read_piece(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """[*sizes] of the global tensor `key`."""

    def read_box(self, box: Box) -> Tensor:
        """A box of a Hugging Face tensor, in the box's shape."""

    def unplaced(self) -> tuple[str, ...]:
        """Keys of what is stored and has no place in the global space: it stays behind."""

    def close(self) -> None: ...


def split_key(key: str) -> tuple[str, str]:
    """(what it is of the weight, the weight's key); the first is empty for the weight itself."""
    prefix = next((prefix for prefix in BESIDE if key.startswith(prefix)), "")
    return prefix, key.removeprefix(prefix)


def is_optimizer_state(key: str) -> bool:
    """Whether it is of an optimizer, in whatever program's order."""
    return _OPTIMIZER.match(key) is not None


class HfSource:
    """Reads a Hugging Face checkpoint of a model of `shape`, whose tensors were validated."""

    def __init__(self, path: Path, shape: ModelShape) -> None:
        self.shape = shape
        self._space = global_space(self.shape)
        self._checkpoint: HfCheckpoint = open_hf_checkpoint(path)
        self._checkpoint.validate(hf_tensors(self.shape))
        self._dtypes: dict[str, torch.dtype] = {}

    def stored(self) -> dict[str, GlobalTensor]:
        return dict(self._space.tensors)

    def dtype_of_key(self, key: str) -> torch.dtype:
        """CheckpointError where the layers differ: a global tensor has one dtype."""
        if key not in self._dtypes:
            self._dtypes[key] = self._common_dtype(key)
        return self._dtypes[key]

    def _common_dtype(self, key: str) -> torch.dtype:
        tensor = self._space.tensors[key]
        links = self._space.links_of_piece(key, (0,) * len(tensor.shape), tensor.shape)
        dtypes = {link.box.tensor: self._checkpoint.dtype(link.box.tensor) for link in links}
        if len(set(dtypes.values())) > 1:
            examples = {dtype: name for name, dtype in sorted(dtypes.items(), reverse=True)}
            named = ", ".join(sorted(f"{name} {str(dtype).removeprefix('torch.')}" for dtype, name in examples.items()))
            raise CheckpointError(f"{self._checkpoint.directory}: expected one dtype, found {named}; choose a --dtype")
        return next(iter(dtypes.values()))

    def dtype_of_tensor(self, name: str) -> torch.dtype:
        return self._checkpoint.dtype(name)

    def read_piece(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        links = list(self._space.links_of_piece(key, offsets, sizes))
        dtypes = {self._checkpoint.dtype(link.box.tensor) for link in links}
        out = torch.empty(sizes, dtype=functools.reduce(torch.promote_types, dtypes))
        for link in links:
            self._copy(link.box, _within(out, link, offsets).view(link.box.shape))
        return out

    def read_box(self, box: Box) -> Tensor:
        out = torch.empty(box.shape, dtype=self._checkpoint.dtype(box.tensor))
        self._copy(box, out)
        return out

    def unplaced(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._checkpoint.close()

    def _copy(self, box: Box, out: Tensor) -> None:
        rows = max(1, BLOCK_BYTES // max(1, out[0].nbytes))
        for low in range(0, box.shape[0], rows):
            high = min(box.shape[0], low + rows)
            start, stop = (box.start[0] + low, *box.start[1:]), (box.start[0] + high, *box.stop[1:])
            out[low:high].copy_(self._checkpoint.read(Box(box.tensor, start, stop)))


class DistSource:
    """Reads the weights, and what is beside them, of a torch.distributed.checkpoint of a model of `shape`.

    Raises CheckpointError where a tensor of the model is missing or has another shape or no float dtype, or where there
    is one that is none of the model: an optimizer's state in another program's order excepted, which is `unplaced`.
    """

    def __init__(self, path: Path, shape: ModelShape) -> None:
        self.shape = shape
        self._space, self._dims = global_space(shape), hf_tensors(shape)
        self._checkpoint: DistCheckpoint = open_dist_checkpoint(path, verify=True)
        if faults := list(self._faults()):
            raise CheckpointError(
                f"{path} does not hold the model that its config.json describes; {len(faults)} differences:\n"
                f"  {list_by_kind(faults)}\n{self._advice()}"
            )
        self._checkpoint.check_coverage(self.stored())

    def stored(self) -> dict[str, GlobalTensor]:
        found = {key: self._space.tensors.get(split_key(key)[1]) for key in self._checkpoint.tensors}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def unplaced(self) -> tuple[str, ...]:
        made_anew, stored = set(extra_state_objects(self.shape)), self.stored()
        keys = (*self._checkpoint.tensors, *self._checkpoint.objects)
        return tuple(key for key in keys if key not in stored and not (key in made_anew and self._is_empty(key)))

    def dtype_of_key(self, key: str) -> torch.dtype:
        return self._checkpoint.tensors[key].dtype

    def dtype_of_tensor(self, name: str) -> torch.dtype:
        dims = self._dims[name]
        return self.dtype_of_key(next(self._space.links_of_box(Box(name, (0,) * len(dims), dims))).key)

    def read_piece(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        return self._checkpoint.read(key, offsets, sizes)

    def read_box(self, box: Box) -> Tensor:
        out = torch.empty(box.shape, dtype=self.dtype_of_tensor(box.tensor))
        for link in self._space.links_of_box(box):
            index = tuple(slice(low - zero, high - zero) for low, high, zero in _bounds(link, box))
            self._checkpoint.read(link.key, link.offsets, link.sizes, out=out[index].view(link.sizes))
        return out

    def close(self) -> None:
        self._checkpoint.close()

    def _is_empty(self, key: str) -> bool:
        """Whether an object says nothing: Transformer Engine's scales do, where it computes in FP8."""
        try:
            found = torch.load(io.BytesIO(self._checkpoint.read_object(key)), map_location="cpu", weights_only=True)
        except Exception:  # of another class, or damaged: either may raise almost anything
            return False
        value = found[0] if isinstance(found, list) and len(found) == 1 else found
        return value is None or (isinstance(value, Tensor) and value.numel() == 0)

    def _faults(self) -> Iterator[tuple[str, str]]:
        """(kind, what)"""
        stored = self._checkpoint.tensors
        for key, tensor in self._space.tensors.items():
            if key not in stored:
                yield "missing", f"{key} {list(tensor.shape)}"
        for key, found in stored.items():
            prefix, weight = split_key(key)
            expected = self._space.tensors.get(weight)
            if expected is None:
                if not is_optimizer_state(key):
                    yield "unexpected", f"{key} {list(found.shape)}"
                continue
            if not _fits(found.shape, expected):
                yield "wrong shape", f"{key}: expected {list(expected.shape)}, found {list(found.shape)}"
            if not prefix and found.dtype not in FLOAT_DTYPES.values():
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES.values())
                yield "wrong dtype", f"{key}: expected one of {names}, found {str(found.dtype).removeprefix('torch.')}"

    def _advice(self) -> str:
        if any(_PER_LAYER.search(key) for key in self._checkpoint.tensors):
            return "It has tensors of single layers: save it from Megatron with homogeneous layers."
        return "Use the checkpoint that belongs to this config.json, or name the model's directory with --model."


def _fits(found: tuple[int, ...], expected: GlobalTensor) -> bool:
    """Megatron stores the vocabulary with its padding, which is left behind."""
    same_rest = len(found) == len(expected.shape) and found[1:] == expected.shape[1:]
    return found == expected.shape or (expected.open_ended and same_rest and found[0] > expected.shape[0])


def _within(out: Tensor, link: Link, offsets: tuple[int, ...]) -> Tensor:
    """The link's part of a rectangle that begins at `offsets`."""
    sizes = zip(link.offsets, link.sizes, offsets, strict=True)
    return out[tuple(slice(low - zero, low - zero + size) for low, size, zero in sizes)]


def _bounds(link: Link, box: Box) -> Iterator[tuple[int, int, int]]:
    return zip(link.box.start, link.box.stop, box.start, strict=True)
