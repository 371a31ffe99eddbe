"""What the policy has for the engines, cut into blocks.

A block holds the elements that one set of the policy's ranks holds, all of them alike, and exactly one set of an
engine's tensor ranks wants. It is a run of elements: units end to end, each a box in row-major order. Sender and
receiver cut it from the same layouts, so that a range of a block's elements means the same on both sides without being
described. Which ranks hold a part is the layout's to say (sources.py): data-parallel replicas are one such set, the
replicas of an expert another.

Invariants: every element an engine's tensor rank wants is in exactly one block; blocks are the same for every engine
and every holder; nothing here depends on their number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from megarl.models.boxes import Box
from megarl.reshard.regions import Placed, Region, intersect, narrow


class Holders(NamedTuple):
    """Policy ranks that hold the same, and share the sending of it: `num` of them, `step` apart.

    Megarl's grids number their ranks axis by axis, so that the ranks which differ along one axis only are such a row.
    """

    first: int
    step: int = 1
    num: int = 1

    def rank(self, index: int) -> int:
        """The index-th of them."""
        return self.first + self.step * index

    def index_of(self, rank: int) -> int:
        """Which of them a rank is; ValueError for one that is none."""
        index, between = divmod(rank - self.first, self.step)
        if between or not 0 <= index < self.num:
            raise ValueError(f"policy rank {rank} is none of {self}")
        return index


class Holding(NamedTuple):
    """What some policy ranks send from, and who they are."""

    holders: Holders
    placed: Sequence[Placed]


class BlockKey(NamedTuple):
    """Which policy ranks hold the block and which tensor ranks of an engine want it."""

    holders: Holders
    wanted_by: tuple[int, ...]

    def as_json(self) -> list[list[int]]:
        return [list(self.holders), list(self.wanted_by)]

    @classmethod
    def from_json(cls, fields: list[list[int]]) -> "BlockKey":
        holders, wanted_by = fields
        return cls(Holders(*holders), tuple(wanted_by))


class Unit(NamedTuple):
    """A box of a block: its first element there, and its place in the parameters of the rank that looks.

    `regions`: one on the policy; on an engine one for every parameter that holds the box.
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
    """Policy and engine layouts do not fit; the text names the tensor and the numbers."""


class WantedBoxes:
    """The distinct boxes the tensor ranks of an engine want, by tensor, with who wants them."""

    def __init__(self, wanted: Sequence[Iterable[Box]]) -> None:
        """`wanted[k]`: boxes of tensor rank k; a box it wants for two parameters counts once."""
        workers: dict[Box, set[int]] = {}
        for tensor_rank, boxes in enumerate(wanted):
            for box in boxes:
                workers.setdefault(box, set()).add(tensor_rank)
        self._by_tensor: dict[str, list[tuple[Box, tuple[int, ...]]]] = {}
        # In one order on every peer, whatever the order of the boxes: blocks are built in it.
        for box, ranks in sorted(workers.items(), key=lambda item: (item[0].tensor, item[0].start, item[0].stop)):
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


def cut_source_blocks(holding: Holding, wanted: WantedBoxes) -> list[Block]:
    """The blocks of one holding, in order of their keys; units lie where the policy has them."""
    cut = _Cutter(holding.holders)
    for piece in holding.placed:
        for box, ranks in wanted.of(piece.box.tensor):
            if common := intersect(piece.box, box):
                cut.add(ranks, common, (narrow(piece, common),))
    return cut.blocks()


def cut_target_blocks(
    targets: Mapping[Box, tuple[Region, ...]],
    wanted: WantedBoxes,
    *,
    tensor_rank: int,
    holdings: Iterable[Holding],
) -> list[Block]:
    """All blocks that tensor rank `tensor_rank` wants of all the policy's holdings; units lie in `targets`.

    Raises:
        LayoutError: the policy does not hold every wanted element exactly once.
    """
    missing = {box: box.num_elements for box in targets}
    blocks: list[Block] = []
    for holding in holdings:
        cut = _Cutter(holding.holders)
        for piece in holding.placed:
            for box, ranks in wanted.of(piece.box.tensor):
                if tensor_rank in ranks and (common := intersect(piece.box, box)):
                    cut.add(ranks, common, tuple(narrow(Placed(box, region), common) for region in targets[box]))
                    missing[box] -= common.num_elements
        blocks += cut.blocks()
    for box, count in missing.items():
        if count:
            raise LayoutError(
                f"{box.tensor}{list(box.start)}..{list(box.stop)}: the engine wants {box.num_elements} elements, the "
                f"policy holds {box.num_elements - count} of them; do both run the same model?"
            )
    return blocks


class _Cutter:
    """Collects the units of one holding's blocks, in the order of the policy's table."""

    def __init__(self, holders: Holders) -> None:
        self._holders = holders
        self._units: dict[tuple[int, ...], list[Unit]] = {}
        self._sizes: dict[tuple[int, ...], int] = {}

    def add(self, ranks: tuple[int, ...], box: Box, regions: tuple[Region, ...]) -> None:
        start = self._sizes.get(ranks, 0)
        self._units.setdefault(ranks, []).append(Unit(start, box, regions))
        self._sizes[ranks] = start + box.num_elements

    def blocks(self) -> list[Block]:
        return [
            Block(BlockKey(self._holders, ranks), self._sizes[ranks], tuple(self._units[ranks]))
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
