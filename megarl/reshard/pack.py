"""Elements of blocks into contiguous buffers.

A message's bytes are its range of the block's elements in order; where they lie in the policy's parameters is what the
block's units say. A parameter of another dtype than the wire's is rounded here, once.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from megarl.reshard.blocks import Block, BlockKey, units_between
from megarl.reshard.checksum import Checksums
from megarl.reshard.plan import Place
from megarl.reshard.regions import split_run, view_region


class Part(NamedTuple):
    """Neighbouring elements of a message that belong to one checkpoint tensor."""

    tensor: str
    start: int
    """First element, counted from the start of the message."""
    stop: int


def list_parts(block: Block, start: int, stop: int) -> tuple[Part, ...]:
    """What the block's elements [start, stop) are, tensor by tensor; the same on sender and receiver."""
    parts: list[Part] = []
    for unit, first, last in units_between(block, start, stop):
        low = unit.start + first - start
        if parts and parts[-1].tensor == unit.box.tensor:
            parts[-1] = parts[-1]._replace(stop=low + last - first)
        else:
            parts.append(Part(unit.box.tensor, low, low + last - first))
    return tuple(parts)


class PartsTable:
    """The parts of a session's messages, which are the same in every publication."""

    def __init__(self, blocks: Mapping[BlockKey, Block]) -> None:
        self._blocks = blocks
        self._parts: dict[Place, tuple[Part, ...]] = {}

    def of(self, place: Place) -> tuple[Part, ...]:
        """The parts of one message, each beginning where the one before ends."""
        if place not in self._parts:
            key, start, stop = place
            self._parts[place] = list_parts(self._blocks[key], start, stop)
        return self._parts[place]


def byte_bounds(parts: tuple[Part, ...], itemsize: int) -> list[int]:
    """[parts + 1]: where a message's parts begin, in bytes, and where the last ends."""
    return [0, *(part.stop * itemsize for part in parts)]


def compute_part_checksums(elements: Tensor, parts: tuple[Part, ...], checksums: Checksums) -> list[int]:
    """One 64-bit checksum a part, of a message's elements [num_elements]."""
    return checksums.of_parts(elements, byte_bounds(parts, elements.itemsize))


def views_between(
    parameters: Mapping[str, Tensor], block: Block, start: int, stop: int
) -> Iterator[tuple[str, Tensor]]:
    """The block's elements [start, stop) in order, as views of a trainer's parameters, each with its parameter."""
    for unit, first, last in units_between(block, start, stop):
        (region,) = unit.regions
        for corner, shape in split_run(unit.box.shape, first, last):
            yield region.parameter, view_region(parameters[region.parameter], region, corner, shape)


def pack_range(parameters: Mapping[str, Tensor], block: Block, start: int, stop: int, *, out: Tensor) -> None:
    """Copy the block's elements [start, stop) out of a policy rank's parameters into `out` [stop - start]."""
    position = 0
    with torch.no_grad():
        for _, view in views_between(parameters, block, start, stop):
            out[position : position + view.numel()].view(view.shape).copy_(view)
            position += view.numel()
