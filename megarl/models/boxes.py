"""Boxes: rectangular parts of Hugging Face tensors, and where they lie in a rank's parameter.

Invariants: a box is not empty and has one start and one stop per dimension of its tensor; a piece places a box, in the
box's own shape, at `start` of a local parameter; the pieces of one parameter do not overlap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megarl.models.shape import ModelError


@dataclass(frozen=True, slots=True)
class Box:
    """`tensor[start[0]:stop[0], start[1]:stop[1], ...]` of the checkpoint's tensor of that name."""

    tensor: str
    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        bounds = zip(self.start, self.stop, strict=False)
        if len(self.start) != len(self.stop) or any(not 0 <= low < high for low, high in bounds):
            raise ValueError(f"empty or malformed box of {self.tensor}: start {self.start}, stop {self.stop}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(high - low for low, high in zip(self.start, self.stop, strict=True))

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the box in its tensor."""
        return tuple(slice(low, high) for low, high in zip(self.start, self.stop, strict=True))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Does the box lie inside a tensor of this shape?"""
        return len(shape) == len(self.stop) and all(high <= size for high, size in zip(self.stop, shape, strict=True))


@dataclass(frozen=True, slots=True)
class Piece:
    """A box and the corner of the local parameter where it begins."""

    box: Box
    start: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the piece in the local parameter."""
        return tuple(slice(low, low + size) for low, size in zip(self.start, self.box.shape, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterEntry:
    """One parameter of a rank: its name in the Megatron model chunk, its local shape, and what it holds."""

    name: str
    """As `named_parameters()` of the chunk's GPTModel gives it."""
    chunk: int
    """Virtual-pipeline chunk; (chunk, name) is unique on a rank."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """Elements outside every piece are vocabulary padding and zero."""
    split_dim: int | None
    """Dimension that is split over the tensor ranks; None: every tensor rank holds the same."""
    tied: bool
    """The last stage's copy of the embedding, which the first stage holds too."""

    @property
    def num_padding(self) -> int:
        """Elements that belong to no tensor of the checkpoint."""
        return math.prod(self.shape) - sum(piece.box.num_elements for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Segment:
    """Indices [start, stop) of a checkpoint tensor's split dimension; None instead of a tensor is padding."""

    tensor: str | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A whole Megatron parameter, before it is split: `segments` laid end to end along `split_dim`.

    Tensor rank r holds the r-th of `tensor_size` equal parts. Without a `split_dim` the segments run along dimension 0
    and every rank holds all of them.
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None
    segments: tuple[Segment, ...]

    def local_shape(self, tensor_size: int) -> tuple[int, ...]:
        if self.split_dim is None:
            return self.shape
        length = self.shape[self.split_dim]
        if length % tensor_size:
            raise ModelError(f"{self.name}: {length} does not split over {tensor_size} tensor ranks; choose another")
        return (*self.shape[: self.split_dim], length // tensor_size, *self.shape[self.split_dim + 1 :])

    def cut(self, *, tensor_rank: int, tensor_size: int) -> Iterator[Piece]:
        """The pieces of one tensor rank, in order; segments are cut where a rank ends, padding gives none."""
        local, dim = self.local_shape(tensor_size), self.split_dim or 0
        low = 0 if self.split_dim is None else tensor_rank * local[dim]
        high, position = low + local[dim], 0
        for segment in self.segments:
            begin, end = max(position, low), min(position + segment.stop - segment.start, high)
            if begin < end and segment.tensor is not None:
                first = segment.start + begin - position
                start, stop, corner = [0] * len(local), list(local), [0] * len(local)
                start[dim], stop[dim], corner[dim] = first, first + end - begin, begin - low
                yield Piece(Box(segment.tensor, tuple(start), tuple(stop)), tuple(corner))
            position += segment.stop - segment.start
