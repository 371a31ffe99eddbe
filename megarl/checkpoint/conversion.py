"""The work of a conversion, cut into units that any process can do alone: read a rectangle, write it, or compare it.

Invariants: the units of a conversion write every element of the target once; whoever has a `Job` plans the same units
in the same order; a process holds the tensor of one unit, and its copy in another dtype, at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megarl.checkpoint.dist_writer import DistWriter, Written
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.hf_files import HF_DIRECTORY
from megarl.checkpoint.hf_shards import ShardPlan, TensorKind, plan_shards, write_box
from megarl.checkpoint.source_path import Kind, is_dist_checkpoint
from megarl.checkpoint.sources import BLOCK_BYTES, DistSource, HfSource, Source, split_key
from megarl.models.boxes import Box
from megarl.models.families import read_model_shape
from megarl.models.global_space import global_tensors, rank_pieces
from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One conversion, as a process needs it."""

    source: Path
    target: Path
    """Of what is written, which has not its final name yet."""
    model: Path
    """Directory of config.json and the tokenizer."""
    to: Kind
    tensor: int
    pipeline: int
    dtype: torch.dtype | None
    """Of the weights; None: each as it is."""
    shard_bytes: int
    """Largest file."""


@dataclass(frozen=True, slots=True)
class BoxUnit:
    """Rows of a Hugging Face tensor."""

    box: Box

    @property
    def num_elements(self) -> int:
        return self.box.num_elements


@dataclass(frozen=True, slots=True)
class PieceUnit:
    """A rectangle of a stored tensor, which policy rank `rank` of the target would write."""

    rank: int
    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.sizes)


Unit = BoxUnit | PieceUnit


def open_source(path: Path, model: Path) -> Source:
    """The checkpoint at `path`, of the model of `model`'s config.json; CheckpointError with all that is wrong."""
    shape = read_model_shape(model)
    return DistSource(path, shape) if is_dist_checkpoint(path) else HfSource(path, shape)


def plan_target_shards(job: Job, source: Source) -> ShardPlan:
    """The files of a Hugging Face target."""
    kinds = {
        name: TensorKind(dims, job.dtype or source.dtype_of_tensor(name))
        for name, dims in hf_tensors(source.shape).items()
    }
    return plan_shards(kinds, max_bytes=job.shard_bytes)


def list_units(job: Job, source: Source) -> list[Unit]:
    """What is to be written, in the order of the files."""
    if job.to == "hf":
        return list(_box_units(source.shape))
    keys = source.stored()
    for key in keys:
        if _keeps_dtype(job, key):
            source.dtype_of_key(key)  # layers of a Hugging Face checkpoint may differ in theirs
    return list(_piece_units(source.shape, keys, tensor=job.tensor, pipeline=job.pipeline))


def list_check_units(job: Job, source: Source) -> list[Unit]:
    """What is to be compared: the other view of the weights than was written, so that no error of one hides."""
    if job.to == "dist":
        beside = [key for key in source.stored() if split_key(key)[0]]
        return [*_box_units(source.shape), *_piece_units(source.shape, beside, tensor=1, pipeline=1)]
    keys = [key for key in source.stored() if not split_key(key)[0]]
    return list(_piece_units(source.shape, keys, tensor=1, pipeline=1))


def target_bytes(job: Job, source: Source, units: Sequence[Unit]) -> int:
    """Of the tensors that the units write."""
    return sum(_unit_bytes(job, source, unit) for unit in units)


def share_units(job: Job, source: Source, units: Sequence[Unit], *, index: int, count: int) -> list[Unit]:
    """The index-th of `count` shares of about as many bytes; neighbours stay together, for the sake of the disk."""
    sizes = [_unit_bytes(job, source, unit) for unit in units]
    ends = itertools.accumulate(sizes)
    total = max(1, sum(sizes))
    middles = (end - size / 2 for end, size in zip(ends, sizes, strict=True))
    return [unit for unit, middle in zip(units, middles, strict=True) if int(middle * count / total) == index]


def write_units(
    job: Job, source: Source, units: Sequence[Unit], *, index: int, count: int, advance: Callable[[int], None]
) -> Written:
    """Write the units of share `index` of `count`; `advance` is told the bytes of each."""
    if job.to == "hf":
        plan = plan_target_shards(job, source)
        for unit in units:
            assert isinstance(unit, BoxUnit)
            write_box(job.target, plan, unit.box, _converted(job, unit.box.tensor, source.read_box(unit.box)))
            advance(_unit_bytes(job, source, unit))
        return Written()
    written = Written()
    pieces = [unit for unit in units if isinstance(unit, PieceUnit)]
    for rank, group in itertools.groupby(pieces, key=lambda unit: unit.rank):
        options = {"rank": rank, "first": index, "stride": count, "file_bytes": job.shard_bytes}
        with DistWriter(job.target, **options) as writer:
            for unit in group:
                values = _converted(job, unit.key, source.read_piece(unit.key, unit.offsets, unit.sizes))
                writer.write(unit.key, values, shape=unit.shape, offsets=unit.offsets)
                advance(_unit_bytes(job, source, unit))
            part = writer.finish()
        written.files |= part.files
        written.chunks += part.chunks
    return written


def check_units(job: Job, source: Source, units: Sequence[Unit], *, advance: Callable[[int], None]) -> None:
    """Compare the units of the target with the source, bit for bit; CheckpointError at the first that differs."""
    model = job.target / HF_DIRECTORY if job.to == "dist" else job.target
    target = open_source(job.target, model)
    try:
        for unit in units:
            if not _same(*_pair(job, source, target, unit)):
                what = unit.box if isinstance(unit, BoxUnit) else f"{unit.key} at {list(unit.offsets)}"
                raise CheckpointError(
                    f"{job.target} differs from {job.source} in {what}; the disk or the memory of this machine is "
                    "faulty, or megarl is: nothing was kept"
                )
            advance(_unit_bytes(job, source, unit))
    finally:
        target.close()


def _pair(job: Job, source: Source, target: Source, unit: Unit) -> tuple[Tensor, Tensor]:
    if isinstance(unit, BoxUnit):
        return _converted(job, unit.box.tensor, source.read_box(unit.box)), target.read_box(unit.box)
    place = (unit.key, unit.offsets, unit.sizes)
    return _converted(job, unit.key, source.read_piece(*place)), target.read_piece(*place)


def _same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit: a weight that is not a number equals itself."""
    same_kind = (first.dtype, first.shape) == (second.dtype, second.shape)
    return same_kind and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _keeps_dtype(job: Job, key: str) -> bool:
    """Only weights change their dtype: moments and main weights are kept for their precision."""
    return job.dtype is None or bool(split_key(key)[0])


def _converted(job: Job, key: str, values: Tensor) -> Tensor:
    """CheckpointError where a number becomes an infinite one: float16 ends at 65504, bfloat16 before float32."""
    if job.dtype is None or _keeps_dtype(job, key) or values.dtype == job.dtype:
        return values
    converted = values.to(job.dtype)
    if not torch.equal(converted.isinf(), values.isinf()):
        name = str(job.dtype).removeprefix("torch.")
        raise CheckpointError(f"{job.source}: {key} has numbers that {name} does not: choose another --dtype")
    return converted


def _unit_bytes(job: Job, source: Source, unit: Unit) -> int:
    if isinstance(unit, BoxUnit):
        dtype = job.dtype or source.dtype_of_tensor(unit.box.tensor)
    elif job.dtype is None or _keeps_dtype(job, unit.key):
        dtype = source.dtype_of_key(unit.key)
    else:
        dtype = job.dtype
    return unit.num_elements * dtype.itemsize


def _box_units(shape: ModelShape) -> Iterator[BoxUnit]:
    for name, dims in hf_tensors(shape).items():
        rows = max(1, BLOCK_BYTES // (math.prod(dims[1:]) * torch.float32.itemsize))
        for low in range(0, dims[0], rows):
            start = (low, *(0 for _ in dims[1:]))
            yield BoxUnit(Box(name, start, (min(dims[0], low + rows), *dims[1:])))


def _piece_units(shape: ModelShape, keys: Iterable[str], *, tensor: int, pipeline: int) -> Iterator[PieceUnit]:
    space = global_tensors(shape)
    stored: dict[str, list[str]] = {}
    for key in keys:
        stored.setdefault(split_key(key)[1], []).append(key)
    ranks = itertools.product(range(pipeline), range(tensor))
    for rank, (pipeline_rank, tensor_rank) in enumerate(ranks):
        layout = layout_of(
            shape, tensor_rank=tensor_rank, tensor_size=tensor, pipeline_rank=pipeline_rank, pipeline_size=pipeline
        )
        for placed in rank_pieces(shape, layout, spec="te").values():
            for piece in () if placed.is_replica else placed.pieces:
                for key in stored.get(piece.key, ()):
                    yield PieceUnit(rank, key, space[piece.key].shape, piece.offsets, piece.sizes)
