"""Regions of memory, runs of elements and the blocks they are cut into, by hand and against plain indexing."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.models.boxes import Box
from megarl.parallel.grid import RankGrid
from megarl.reshard.blocks import (
    Block,
    BlockKey,
    Holders,
    Unit,
    WantedBoxes,
    cut_source_blocks,
    cut_target_blocks,
    units_between,
)
from megarl.reshard.regions import Placed, Region, intersect, narrow, split_run, view_region
from megarl.reshard.sources import PolicyLayout
from tests.models.shapes import make_shape
from tests.reshard.wanted import live_parameters, targets_of


def test_split_run_by_hand() -> None:
    """Elements 5 to 22 of a [4, 6]: the end of row 0, rows 1 and 2 together, the beginning of row 3."""
    assert list(split_run((4, 6), 5, 22)) == [((0, 5), (1, 1)), ((1, 0), (2, 6)), ((3, 0), (1, 4))]
    assert list(split_run((4, 6), 7, 9)) == [((1, 1), (1, 2))]
    assert list(split_run((4, 6), 0, 24)) == [((0, 0), (4, 6))]
    assert list(split_run((9,), 2, 7)) == [((2,), (5,))]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.data())
@settings(deadline=None)
def test_split_run_covers_the_run_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    numbers = torch.arange(size).view(shape)
    parts = list(split_run(shape, start, stop))
    found = [numbers[tuple(slice(c, c + n) for c, n in zip(*part, strict=True))].flatten() for part in parts]
    assert torch.cat(found).tolist() == list(range(start, stop))
    assert len(parts) <= 2 * (len(shape) - 1) + 1


def test_intersect() -> None:
    left = Box("w", (0, 2), (4, 8))
    assert intersect(left, Box("w", (3, 0), (9, 4))) == Box("w", (3, 2), (4, 4))
    assert intersect(left, left) == left
    assert intersect(left, Box("w", (4, 2), (5, 8))) is None  # they touch
    assert intersect(left, Box("w", (0, 0), (4, 1))) is None


def test_narrow_keeps_strides_and_moves_the_offset() -> None:
    """A parameter that keeps the box transposed, with 7 elements before it: strides (1, 4) of a [4, 6] at 7."""
    box = Box("w", (10, 20), (14, 26))
    placed = Placed(box, Region("p", 7, (1, 4)))
    inner = Box("w", (11, 22), (13, 25))
    region = narrow(placed, inner)
    assert region == Region("p", 7 + 1 + 2 * 4, (1, 4))
    assert narrow(placed, box) == placed.region
    values = torch.arange(24).view(4, 6)
    memory = torch.cat([torch.full((7,), -1), values.T.flatten()])
    assert torch.equal(view_region(memory, region, (0, 0), inner.shape), values[1:3, 2:5])
    assert torch.equal(view_region(memory, region, (1, 1), (1, 2)), values[2:3, 3:5])
    # A parameter may itself be a view that begins inside its storage.
    longer = torch.cat([torch.zeros(3, dtype=torch.int64), memory])
    assert torch.equal(view_region(longer[3:], region, (0, 0), inner.shape), values[1:3, 2:5])


def block_of(sizes: list[int]) -> Block:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    units = [Unit(start, Box("w", (0,), (size,)), ()) for start, size in zip(starts, sizes, strict=True)]
    return Block(BlockKey(Holders(0), (0,)), sum(sizes), tuple(units))


def test_units_between_by_hand() -> None:
    block = block_of([4, 6, 2])
    first, second, third = block.units
    assert list(units_between(block, 0, 12)) == [(first, 0, 4), (second, 0, 6), (third, 0, 2)]
    assert list(units_between(block, 4, 10)) == [(second, 0, 6)]
    assert list(units_between(block, 3, 11)) == [(first, 3, 4), (second, 0, 6), (third, 0, 1)]
    assert list(units_between(block, 5, 7)) == [(second, 1, 3)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_units_between_cover_the_range(sizes: list[int], data: st.DataObject) -> None:
    block = block_of(sizes)
    start = data.draw(st.integers(0, block.num_elements - 1))
    stop = data.draw(st.integers(start + 1, block.num_elements))
    found = [unit.start + n for unit, first, last in units_between(block, start, stop) for n in range(first, last)]
    assert found == list(range(start, stop))


def test_source_and_target_blocks_are_cut_alike() -> None:
    """2 key-value heads on 4 engine ranks: a policy position has blocks for pairs of them, for each and for all."""
    shape = make_shape(num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=64)
    layout = PolicyLayout(shape=shape, grid=RankGrid(tensor=1, pipeline=1, data=1))
    targets = [targets_of(live_parameters(shape, rank=rank, tensor_size=4)) for rank in range(4)]
    wanted, holding = WantedBoxes(targets), layout.holding(pipeline=0, tensor=0)
    source = {block.key: block for block in cut_source_blocks(holding, wanted)}
    assert [key.wanted_by for key in source] == [(0,), (0, 1), (0, 1, 2, 3), (1,), (2,), (2, 3), (3,)]
    for rank in range(4):
        target = cut_target_blocks(targets[rank], wanted, tensor_rank=rank, holdings=[holding])
        assert [block.key for block in target] == [key for key in source if rank in key.wanted_by]
        for block in target:
            ours = [(unit.start, unit.box) for unit in source[block.key].units]
            assert [(unit.start, unit.box) for unit in block.units] == ours
            assert block.num_elements == source[block.key].num_elements
