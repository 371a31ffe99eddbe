"""Messages that are read from a checkpoint are those that a rank packs which holds it."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megarl.models.boxes import Box
from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.shards import fill_parameter
from megarl.models.table import list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard import stored as stored_module
from megarl.reshard.blocks import Block, WantedBoxes, cut_source_blocks
from megarl.reshard.checksum import Checksums
from megarl.reshard.pack import pack_range
from megarl.reshard.packer import Packer
from megarl.reshard.regions import parameter_key
from megarl.reshard.seal import Seal, new_secret
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.stored import StoredPacker, StoredWeights, read_range
from megarl.reshard.tally import Tally
from tests.models.shapes import make_shape
from tests.reshard.publication import make_checkpoint
from tests.reshard.wanted import live_parameters, targets_of

CHECKSUMS = Checksums(Seal(new_secret(), purpose="tests"))
SHAPES = {
    "untied": make_shape(hidden_size=24, ffn_size=32, vocab_size=50),
    "tied, biased": make_shape(hidden_size=24, ffn_size=32, vocab_size=50, tied_embeddings=True, qkv_bias=True),
}


def make_blocks(shape: ModelShape, *, tensor: int) -> list[Block]:
    """All that engines of so many tensor ranks want of one rank with everything."""
    wanted = [targets_of(live_parameters(shape, rank=rank, tensor_size=tensor)) for rank in range(tensor)]
    (holding,) = PolicyLayout(shape=shape, grid=RankGrid(tensor=1, pipeline=1, data=1)).holdings()
    return cut_source_blocks(holding, WantedBoxes(wanted))


def make_parameters(shape: ModelShape, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of that rank."""
    layout = layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=0, pipeline_size=1)
    parameters = {}
    for entry in list_parameters(shape, layout):
        parameter = parameters[parameter_key(entry.chunk, entry.name)] = torch.empty(entry.shape)
        fill_parameter(parameter, entry, lambda box: tensors[box.tensor][box.slices])
    return parameters


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [50, 1 << 20])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_any_range_has_the_elements_and_checksums_of_parameters(
    name: str, tensor: int, dtype: torch.dtype, at_once: int, data: st.DataObject
) -> None:
    shape = SHAPES[name]
    tensors = make_checkpoint(shape, 2)
    parameters, stored = make_parameters(shape, tensors), StoredWeights(lambda box: tensors[box.tensor][box.slices])
    for block in make_blocks(shape, tensor=tensor):
        start = data.draw(st.integers(0, block.num_elements - 1))
        place = block.key, start, data.draw(st.integers(start + 1, block.num_elements))
        held, read = (torch.zeros(place[2] - start, dtype=dtype) for _ in range(2))
        blocks = {block.key: block}
        expected = Packer(parameters, blocks, CHECKSUMS).pack(place, held, Tally())
        with mock.patch.object(stored_module, "_READ_ELEMENTS", at_once):
            assert StoredPacker(stored, blocks, CHECKSUMS).pack(place, read, Tally()) == expected
        assert torch.equal(held.view(torch.uint8), read.view(torch.uint8))


def test_no_more_is_read_than_is_packed() -> None:
    """Each element once, in boxes of the range; asked for anew the next time."""
    shape = SHAPES["untied"]
    tensors, asked = make_checkpoint(shape, 2), list[Box]()

    def read(box: Box) -> Tensor:
        asked.append(box)
        return tensors[box.tensor][box.slices]

    (block,) = make_blocks(shape, tensor=1)
    packed = torch.zeros(100)
    for start in (0, 731, 731):
        asked.clear()
        read_range(StoredWeights(read), block, start, start + 100, out=packed)
        assert sum(box.num_elements for box in asked) == 100
    held = torch.zeros(100)
    pack_range(make_parameters(shape, tensors), block, 731, 831, out=held)
    assert torch.equal(packed, held)


def test_what_is_read_has_the_shape_that_was_asked_for() -> None:
    (block,) = make_blocks(SHAPES["untied"], tensor=1)
    with pytest.raises(ValueError, match=r"expected shape \(\d+, 24\) for Box\(.*, found \(1, 1\)"):
        read_range(StoredWeights(lambda _: torch.zeros(1, 1)), block, 0, block.num_elements, out=torch.zeros(10**6))
