"""Elements into messages: order, rounding, and whose they are, on both sides alike."""

import itertools

import pytest
import torch
from torch import Tensor

from megarl.models.layout import layout_of
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.blocks import Block, WantedBoxes, cut_source_blocks, cut_target_blocks
from megarl.reshard.checksum import Checksums
from megarl.reshard.pack import Part, compute_part_checksums, list_parts, pack_range
from megarl.reshard.regions import parameter_key
from megarl.reshard.seal import Seal, new_secret
from megarl.reshard.sources import PolicyLayout
from tests.models.shapes import make_shape
from tests.reshard.wanted import live_parameters, targets_of

SHAPE = make_shape(qkv_bias=True)
LAYOUT = PolicyLayout(shape=SHAPE, grid=RankGrid(tensor=2, pipeline=1, data=1))
TARGETS = [targets_of(live_parameters(SHAPE, rank=rank, tensor_size=2)) for rank in range(2)]
WANTED = WantedBoxes(TARGETS)


def source_blocks(tensor: int) -> list[Block]:
    return cut_source_blocks(LAYOUT.holding(pipeline=0, tensor=tensor), WANTED)


def make_tensors() -> dict[str, Tensor]:
    """Random checkpoint tensors with values that bfloat16 does not have, ties between two neighbours among them."""
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(SHAPE).items()}
    for values in tensors.values():
        halfway = values.view(-1)[::3].bfloat16().float().view(torch.int32) + 0x8000
        values.view(-1)[::3] = halfway.view(torch.float32)
    return tensors


def policy_parameters(tensor: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    ranks = layout_of(SHAPE, tensor_rank=tensor, tensor_size=2, pipeline_rank=0, pipeline_size=1)
    parameters = {}
    for entry in list_parameters(SHAPE, ranks):
        parameter = torch.empty(entry.shape)
        fill_parameter(parameter, entry, lambda box: tensors[box.tensor][box.slices])
        parameters[parameter_key(entry.chunk, entry.name)] = parameter
    return parameters


def elements_of(block: Block, tensors: dict[str, Tensor]) -> Tensor:
    """The block's elements, from the whole tensors."""
    return torch.cat([tensors[unit.box.tensor][unit.box.slices].reshape(-1) for unit in block.units])


@pytest.mark.parametrize("tensor", [0, 1])
def test_parameters_are_rounded_once(tensor: int) -> None:
    tensors = make_tensors()
    parameters = policy_parameters(tensor, tensors)
    for block in source_blocks(tensor):
        out = torch.empty(block.num_elements, dtype=torch.bfloat16)
        pack_range(parameters, block, 0, block.num_elements, out=out)
        assert torch.equal(out, elements_of(block, tensors).bfloat16())


def test_any_range_is_the_same_elements() -> None:
    tensors = make_tensors()
    parameters, block = policy_parameters(0, tensors), max(source_blocks(0), key=lambda block: block.num_elements)
    whole = elements_of(block, tensors)
    for start in range(0, block.num_elements, 7):
        for stop in range(start + 1, block.num_elements + 1, 41):
            out = torch.empty(stop - start)
            pack_range(parameters, block, start, stop, out=out)
            assert torch.equal(out, whole[start:stop])


def test_parts_are_the_same_on_both_sides() -> None:
    """And cover the range, one after the other, each of one tensor."""
    sent = {block.key: block for tensor in range(2) for block in source_blocks(tensor)}
    for rank, targets in enumerate(TARGETS):
        received = cut_target_blocks(targets, WANTED, tensor_rank=rank, holdings=LAYOUT.holdings())
        for block in received:
            for start in range(0, block.num_elements, 5):
                stop = min(start + 50, block.num_elements)
                parts = list_parts(block, start, stop)
                assert parts == list_parts(sent[block.key], start, stop)
                assert [parts[0].start, *(part.stop for part in parts)] == [*(p.start for p in parts), stop - start]
                assert all(left.tensor != right.tensor for left, right in itertools.pairwise(parts))


def test_a_checksum_for_every_part() -> None:
    elements = torch.arange(10.0)
    parts = Part("a", 0, 3), Part("b", 3, 10)
    checksums = Checksums(Seal(new_secret(), purpose="tests"))
    expected = [checksums.of(elements[:3]), checksums.of(elements[3:])]
    assert compute_part_checksums(elements, parts, checksums) == expected
