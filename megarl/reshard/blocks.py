"""What a trainer position has for the engines, cut into blocks.

A block holds the elements that one (pipeline, tensor) position of the trainer holds and exactly one set of an engine's
tensor ranks wants. It is a run of elements: units end to end, each a box in row-major order. Sender and receiver cut
it from the same layouts, so that a range of a block's elements means the same on both sides without being described.

Invariants: every element an engine's tensor rank wants is in exactly one block; blocks are the same for every engine
and every data-parallel replica; nothing here depends on their number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from megarl.models.boxes import Box
from megarl.reshard.regions import Placed, Region, intersect, narrow

Sources = Callable[[int, int], Sequence[Placed]]
"""(pipeline, tensor) -> what the trainer's ranks of that position hold."""


class BlockKey(NamedTuple):
    """Which trainer position holds the block and which tensor ranks of an engine want it."""

    pipeline: int
    tensor: int
    wanted_by: tuple[int, ...]


class Unit(NamedTuple):
    """A box of a block: its first element there, and its place in the parameters of the rank that looks.

    `regions`: one on the trainer; on an engine one for every parameter that holds the box.
    """

    start: int
    box: Box
    regions: tuple[Region, ...]


class Block(NamedTuple):
    """Units end to end."""

    key: BlockKey
    num_elements: int
    units: tuple[Unit, ...]


class LayoutError(ValueError):
    """Trainer and engine layouts do not fit; the text names the tensor and the numbers."""


class WantedBoxes:
    """The distinct boxes the tensor ranks of an engine want, by tensor, with who wants them."""

    def __init__(self, wanted: Sequence[Iterable[Box]]) -> None:
        """`wanted[k]`: boxes of tensor rank k; a box it wants for two parameters counts once."""
        takers: dict[Box, set[int]] = {}
        for tensor_rank, boxes in enumerate(wanted):
            for box in boxes:
                takers.setdefault(box, set()).add(tensor_rank)
        self._by_tensor: dict[str, list[tuple[Box, tuple[int, ...]]]] = {}
        # In one order on every peer, whatever the order of the boxes: blocks are built in it.
        for box, ranks in sorted(takers.items(), key=lambda item: (item[0].tensor, item[0].start, item[0].stop)):
            self._by_tensor.setdefault(box.tensor, []).append((box, tuple(sorted(ranks))))
        self.tensor_size = len(wanted)

    def of(self, tensor: str) -> Sequence[tuple[Box, tuple[int, ...]]]:
        """(box, tensor ranks that want it) of one checkpoint tensor."""
        return self._by_tensor.get(tensor, ())

    @property
    def tensors(self) -> frozenset[str]:
        """Checkpoint tensors of which something is wanted."""
        return frozenset(self._by_tensor)

    def elements(self, tensor_rank: int) -> int:
        """Elements tensor rank `tensor_rank` wants: the fewest it can receive."""
        return sum(
            box.num_elements for boxes in self._by_tensor.values() for box, ranks in boxes if tensor_rank in ranks
        )

    def distinct_elements(self, tensor_ranks: Iterable[int]) -> int:
        """Elements that any of these tensor ranks wants: the fewest a node that holds them can receive."""
        chosen = set(tensor_ranks)
        return sum(
            box.num_elements
            for boxes in self._by_tensor.values()
            for box, ranks in boxes
            if not chosen.isdisjoint(ranks)
        )


def cut_source_blocks(placed: Sequence[Placed], wanted: WantedBoxes, *, pipeline: int, tensor: int) -> list[Block]:
    """The blocks of one trainer position, in order of their keys; units lie where the trainer has them."""
    cut = _Cutter(pipeline, tensor)
    for piece in placed:
        for box, ranks in wanted.of(piece.box.tensor):
            if common := intersect(piece.box, box):
                cut.add(ranks, common, (narrow(piece, common),))
    return cut.blocks()


def cut_target_blocks(
    targets: Mapping[Box, tuple[Region, ...]],
    wanted: WantedBoxes,
    *,
    tensor_rank: int,
    sources: Sources,
    positions: Iterable[tuple[int, int]],
) -> list[Block]:
    """All blocks that tensor rank `tensor_rank` wants, over the trainer's positions; units lie in `targets`.

    Raises:
        LayoutError: the trainer does not hold every wanted element exactly once.
    """
    missing = {box: box.num_elements for box in targets}
    blocks: list[Block] = []
    for pipeline, tensor in positions:
        cut = _Cutter(pipeline, tensor)
        for piece in sources(pipeline, tensor):
            for box, ranks in wanted.of(piece.box.tensor):
                if tensor_rank in ranks and (common := intersect(piece.box, box)):
                    cut.add(ranks, common, tuple(narrow(Placed(box, region), common) for region in targets[box]))
                    missing[box] -= common.num_elements
        blocks += cut.blocks()
    for box, count in missing.items():
        if count:
            raise LayoutError(
                f"{box.tensor}{list(box.start)}..{list(box.stop)}: the engine wants {box.num_elements} elements, the "
                f"trainer holds {box.num_elements - count} of them; do both run the same model?"
            )
    return blocks


class _Cutter:
    """Collects the units of one position's blocks, in the order of the trainer's table."""

    def __init__(self, pipeline: int, tensor: int) -> None:
        self._position = pipeline, tensor
        self._units: dict[tuple[int, ...], list[Unit]] = {}
        self._sizes: dict[tuple[int, ...], int] = {}

    def add(self, ranks: tuple[int, ...], box: Box, regions: tuple[Region, ...]) -> None:
        start = self._sizes.get(ranks, 0)
        self._units.setdefault(ranks, []).append(Unit(start, box, regions))
        self._sizes[ranks] = start + box.num_elements

    def blocks(self) -> list[Block]:
        return [
            Block(BlockKey(*self._position, ranks), self._sizes[ranks], tuple(self._units[ranks]))
            for ranks in sorted(self._units)
        ]


def units_between(block: Block, start: int, stop: int) -> Iterator[tuple[Unit, int, int]]:
    """(unit, first, last + 1 of its own elements) of the block's elements [start, stop), in order."""
    low, high = 0, len(block.units)
    while low < high:  # the last unit that begins at or before start
        middle = (low + high) // 2
        if block.units[middle].start <= start:
            low = middle + 1
        else:
            high = middle
    for unit in block.units[max(low - 1, 0) :]:
        if unit.start >= stop:
            return
        first, last = max(start - unit.start, 0), min(stop - unit.start, unit.box.num_elements)
        if first < last:
            yield unit, first, last
