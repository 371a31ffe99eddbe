"""The global space of a model's weights: one tensor a kind of parameter, whatever the layout and the layer spec.

It is the space in which Megatron-core's `GPTModel.sharded_state_dict` places parameters (0.16.1, homogeneous layers):
the layers' parameters of one name lie in one tensor with the layer as its first axis, a norm has the name that
Transformer Engine's spec gives it (to which Megatron's local spec maps its own), `linear_fc1` has all gate rows before
all up rows, a tied output layer is the embedding. The vocabulary lies there without padding (Megatron loads it with
`allow_shape_mismatch`), so that nothing of a layout is left.

It follows from the table of weights: what a rank with everything holds of a box of the checkpoint, it holds where the
global tensor does. Invariants: the links of a model cover every element of every global tensor and of every Hugging
Face tensor exactly once; pieces of a rank's parameter cover it but for its padding, in order of its elements.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megarl.models.boxes import Box, ParameterEntry
from megarl.models.family import EMBEDDING, OUTPUT, Spec
from megarl.models.layout import RankLayout, layout_of
from megarl.models.shape import ModelShape
from megarl.models.table import list_parameters

_LAYER = re.compile(r"(?<=\.layers\.)(\d+)\.")
"""Megatron's rule for homogeneous layers: the index leaves the name and becomes the first axis."""

_STATELESS = ("decoder.layers.self_attention.core_attention", "decoder.final_layernorm")
"""Modules of Transformer Engine's spec that have an `_extra_state` besides the linear layers."""

Offsets = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GlobalTensor:
    """A tensor of the global space."""

    key: str
    shape: tuple[int, ...]
    open_ended: bool
    """A vocabulary: others may have stored more rows than `shape` says, which are padding."""


@dataclass(frozen=True, slots=True)
class GlobalPiece:
    """A rectangle of a global tensor, and the corner of a rank's parameter where the same elements lie."""

    key: str
    offsets: Offsets
    sizes: tuple[int, ...]
    start: tuple[int, ...]
    """One number per dimension of the parameter, which has no axis of layers."""

    @property
    def local_shape(self) -> tuple[int, ...]:
        return self.sizes[len(self.sizes) - len(self.start) :]

    @property
    def local(self) -> tuple[slice, ...]:
        """Index of the piece in the parameter."""
        return tuple(slice(low, low + size) for low, size in zip(self.start, self.local_shape, strict=True))

    @property
    def num_elements(self) -> int:
        return math.prod(self.sizes)


@dataclass(frozen=True, slots=True)
class FlatPiece:
    """A rectangle of a global tensor whose elements, in order, are a run of a flat share of a rank's parameter."""

    key: str
    offsets: Offsets
    sizes: tuple[int, ...]
    start: int
    """The first one's place in the share."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.sizes)


@dataclass(frozen=True, slots=True)
class PlacedParameter:
    """A parameter of a rank and where it lies in the global space."""

    entry: ParameterEntry
    pieces: tuple[GlobalPiece, ...]
    is_replica: bool
    """Another rank of the same model replica holds the same elements and is the one that writes them."""


@dataclass(frozen=True, slots=True)
class Link:
    """A box of a Hugging Face tensor and the corner of the global tensor that has the same elements."""

    box: Box
    key: str
    offsets: Offsets

    @property
    def sizes(self) -> tuple[int, ...]:
        """In the global tensor."""
        return (1,) * (len(self.offsets) - len(self.box.start)) + self.box.shape

    def part(self, low: tuple[int, ...], high: tuple[int, ...]) -> "Link | None":
        """What of the link lies within [low, high) of the Hugging Face tensor."""
        start = tuple(map(max, self.box.start, low))
        stop = tuple(map(min, self.box.stop, high))
        if any(first >= last for first, last in zip(start, stop, strict=True)):
            return None
        axes = len(self.offsets) - len(start)
        moved = (first - own for first, own in zip(start, self.box.start, strict=True))
        offsets = (*self.offsets[:axes], *(a + b for a, b in zip(self.offsets[axes:], moved, strict=True)))
        return Link(Box(self.box.tensor, start, stop), self.key, offsets)


class GlobalSpace:
    """The global space of one model; `global_space` keeps it."""

    def __init__(self, shape: ModelShape) -> None:
        whole = layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=0, pipeline_size=1)
        self.tensors: dict[str, GlobalTensor] = {}
        """By key, in the order of the layers' parameters."""
        self._of_tensor: dict[str, list[Link]] = defaultdict(list)
        self._of_key: dict[tuple[str, int], list[Link]] = defaultdict(list)
        for entry in list_parameters(shape, whole, spec="te"):
            self._add(entry, shape.num_layers)

    def _add(self, entry: ParameterEntry, num_layers: int) -> None:
        found = _LAYER.search(entry.name)
        key = _LAYER.sub("", entry.name)
        layer = () if found is None else (int(found[1]),)
        for piece in entry.pieces:
            link = Link(piece.box, key, (*layer, *piece.start))
            self._of_tensor[piece.box.tensor].append(link)
            self._of_key[key, layer[0] if layer else 0].append(link)
        # Without padding: as far as the pieces reach.
        dims = tuple(
            max(part.stop for part in column) for column in zip(*(p.slices for p in entry.pieces), strict=True)
        )
        layers = (num_layers,) if layer else ()
        self.tensors[key] = GlobalTensor(key, (*layers, *dims), _is_vocabulary(entry))

    def links_of_box(self, box: Box) -> Iterator[Link]:
        """What the box is made of, in the global space."""
        for link in self._of_tensor[box.tensor]:
            if (part := link.part(box.start, box.stop)) is not None:
                yield part

    def links_of_piece(self, key: str, offsets: Offsets, sizes: tuple[int, ...]) -> Iterator[Link]:
        """What a rectangle of a global tensor is made of, in Hugging Face tensors."""
        axes = len(offsets) - len(self._of_key[key, 0][0].box.start)
        layers = range(offsets[0], offsets[0] + sizes[0]) if axes else range(1)
        low = offsets[axes:]
        high = tuple(a + b for a, b in zip(low, sizes[axes:], strict=True))
        for layer in layers:
            for link in self._of_key[key, layer]:
                # The rectangle's bounds, seen from the link's tensor.
                shift = tuple(a - b for a, b in zip(link.box.start, link.offsets[axes:], strict=True))
                bounds = (tuple(a + b for a, b in zip(edge, shift, strict=True)) for edge in (low, high))
                if (part := link.part(*bounds)) is not None:
                    yield part


@functools.lru_cache(maxsize=8)
def global_space(shape: ModelShape) -> GlobalSpace:
    """The global space of a model; made once."""
    return GlobalSpace(shape)


def global_tensors(shape: ModelShape) -> dict[str, GlobalTensor]:
    """Every tensor of the model's weights in the global space, by key."""
    return global_space(shape).tensors


def extra_state_objects(shape: ModelShape) -> tuple[str, ...]:
    """Names of the objects that Megatron-core's loader asks for besides tensors: `<module>._extra_state/shard_<i>_<n>`.

    They hold None: Transformer Engine keeps FP8 scales there, the local spec nothing. Both specs' are named.
    """
    linear = [key for key in global_tensors(shape) if ".linear_" in key and key.endswith(".weight")]
    modules = [key.removesuffix(".weight") for key in linear]
    return tuple(
        f"{module}._extra_state/shard_{index}_{count}"
        for module in (*modules, *_STATELESS)
        for count in [shape.num_layers if ".layers." in module else 1]
        for index in range(count)
    )


def rank_pieces(
    shape: ModelShape, layout: RankLayout, *, spec: Spec = "local"
) -> dict[tuple[int, str], PlacedParameter]:
    """Every parameter of a rank by (chunk, name), with its place in the global space."""
    space = global_space(shape)
    placed = {}
    for entry in list_parameters(shape, layout, spec=spec):
        found = (
            GlobalPiece(link.key, link.offsets, link.sizes, _corner(link, piece.box, piece.start))
            for piece in entry.pieces
            for link in space.links_of_box(piece.box)
        )
        pieces = tuple(_merge(found, entry.split_dim or 0))
        is_replica = entry.tied or (entry.split_dim is None and layout.tensor_rank > 0)
        placed[entry.chunk, entry.name] = PlacedParameter(entry, pieces, is_replica)
    return placed


def flat_pieces(piece: GlobalPiece, param_shape: tuple[int, ...], *, start: int, size: int) -> tuple[FlatPiece, ...]:
    """What of a piece lies in elements [start, start + size) of its flattened parameter, which are a rank's flat share.

    At most three rectangles where the piece has the parameter's whole rows, as every piece of the table has: the end of
    a row, whole rows, the beginning of a row.
    """
    return tuple(_flat(piece, param_shape, start, start + size))


def _flat(piece: GlobalPiece, dims: tuple[int, ...], low: int, high: int) -> Iterator[FlatPiece]:
    for corner, sizes in _runs(dims, low, high):
        first = tuple(map(max, corner, piece.start))
        ends = zip(corner, sizes, piece.start, piece.local_shape, strict=True)
        shape = tuple(min(a + b, c + d) - begin for begin, (a, b, c, d) in zip(first, ends, strict=True))
        if min(shape) < 1:
            continue
        # Rows that the piece has in part are apart in the share.
        whole = shape[1:] == dims[1:]
        rows = [(0, shape[0])] if whole else [(row, 1) for row in range(shape[0])]
        for row, count in rows:
            begin = (first[0] + row, *first[1:])
            axes = len(piece.offsets) - len(begin)
            moved = (a - b for a, b in zip(begin, piece.start, strict=True))
            offsets = (*piece.offsets[:axes], *(a + b for a, b in zip(piece.offsets[axes:], moved, strict=True)))
            place = sum(index * math.prod(dims[axis + 1 :]) for axis, index in enumerate(begin))
            yield FlatPiece(piece.key, offsets, (*piece.sizes[:axes], count, *shape[1:]), place - low)


def _runs(dims: tuple[int, ...], low: int, high: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(corner, sizes) of rectangles that are elements [low, high) of a flattened vector or matrix, in order."""
    if len(dims) == 1:
        yield (low,), (high - low,)
        return
    rows, width = dims
    first, last = -(-low // width), high // width
    if first > last:  # within one row
        yield (last, low % width), (1, high - low)
        return
    if low % width:
        yield (first - 1, low % width), (1, width - low % width)
    if last > first:
        yield (first, 0), (last - first, width)
    if high % width and last < rows:
        yield (last, 0), (1, high % width)


def _corner(link: Link, box: Box, start: tuple[int, ...]) -> tuple[int, ...]:
    """Where a part of a box lies in the parameter that has the box at `start`."""
    return tuple(a + b - c for a, b, c in zip(start, link.box.start, box.start, strict=True))


def _merge(pieces: Iterable[GlobalPiece], dim: int) -> Iterator[GlobalPiece]:
    """In order of `dim` of the parameter; pieces that go on where the one before ends, in both spaces, are one."""
    held: GlobalPiece | None = None
    for piece in sorted(pieces, key=lambda piece: piece.start[dim]):
        if held is not None and _goes_on(held, piece, dim):
            axis = dim + len(held.sizes) - len(held.start)
            longer = held.sizes[axis] + piece.sizes[axis]
            held = dataclasses.replace(held, sizes=(*held.sizes[:axis], longer, *held.sizes[axis + 1 :]))
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


def _goes_on(held: GlobalPiece, piece: GlobalPiece, dim: int) -> bool:
    axis = dim + len(held.sizes) - len(held.start)
    expected = itertools.zip_longest(held.offsets, held.sizes)
    offsets = tuple(low + size if index == axis else low for index, (low, size) in enumerate(expected))
    start = tuple(low + held.sizes[axis] if index == dim else low for index, low in enumerate(held.start))
    same = (held.sizes[:axis], held.sizes[axis + 1 :]) == (piece.sizes[:axis], piece.sizes[axis + 1 :])
    return same and piece.key == held.key and piece.offsets == offsets and piece.start == start


def _is_vocabulary(entry: ParameterEntry) -> bool:
    return any(piece.box.tensor in (EMBEDDING, OUTPUT) for piece in entry.pieces)
