"""What a channel is: a way of weights from a policy rank's parameters into an engine worker's staging memory.

Headers always travel by the wire (wire.py), in the order of all peers, and name and seal what they announce; how the
elements themselves come is the channel's: over the wire (network.py), packed straight into the worker's memory
(shared_memory.py), or not before they are installed, out of the policy's own parameters (mapped.py). Sender and
receiver know these ends only. A channel is a module with an outlet and an inlet, and a case in channels.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megarl.reshard.blocks import BlockKey, Unit
from megarl.reshard.message import DENSE, Envelope, Header, make_header, name_parts
from megarl.reshard.pack import PartsTable
from megarl.reshard.plan import Message, Place, TransferPlan
from megarl.reshard.regions import Region, view_region
from megarl.reshard.seal import Seal
from megarl.reshard.tally import Tally
from megarl.reshard.wire import Wire


class Packs(Protocol):
    """Where a policy rank's messages come from."""

    parts: PartsTable

    def pack(self, place: Place, out: Tensor, tally: Tally) -> list[int]:
        """Fill `out` [elements] with the place's elements; returns their checksums, part by part."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is the same for all messages of one publication on a policy rank."""

    version: int
    serial: int
    """Of the publication in its session."""
    packer: Packs
    seal: Seal
    wire: Wire
    tally: Tally

    def pack(self, place: Place, out: Tensor) -> list[int]:
        """Fill `out` with the place's elements; returns their checksums, part by part."""
        return self.packer.pack(place, out, self.tally)

    def header(self, place: Place, *, num_bytes: int, checksums: list[int], kind: int = DENSE) -> Tensor:
        """For the wire, on the wire's device."""
        header = Header(self.version, kind, num_bytes, tuple(checksums))
        return make_header(header, Envelope(self.seal, self.serial, place)).to(self.wire.device)

    def what(self, place: Place) -> str:
        """For messages: what is sent."""
        return f"version {self.version}, {name_parts(self.packer.parts.of(place))},"


class Outlet(Protocol):
    """A policy rank's end."""

    def send(self, place: Place, receivers: list[int], publication: Publication) -> None:
        """Start to bring a place's elements to peers. At most `plan.NUM_SLOTS` places are on their way at once."""

    def land(self, tally: Tally) -> None:
        """Return when all that was sent has left this rank."""

    def close(self) -> None:
        """Let memory go. Idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A message whose header has come."""

    header: Header
    message: Message
    what: str
    """For messages: what comes."""
    wire: Wire


class Delivery(Protocol):
    """A message's elements on their way to the worker."""

    payload: Tensor
    """[bytes] uint8, as they came: what is handed on to other workers."""

    def land(self) -> Tensor:
        """Return when they are here: [elements], to be checked."""


class Held(NamedTuple):
    """A unit of a block, and where in a parameter of the worker it belongs."""

    block: BlockKey
    unit: Unit
    region: Region


class Inlet(Protocol):
    """An engine worker's end."""

    def start(self, announced: Announced) -> Delivery:
        """Let the elements come."""

    def install(self, held: Held, parameter: Tensor) -> None:
        """Copy a unit of what came last into its place."""

    def close(self) -> None:
        """Let nobody else reach the worker's memory, and nobody's be reached from here. Idempotent."""


@dataclass(frozen=True, slots=True)
class StagingLayout:
    """Where each block begins in a worker's staging memory: block after block, in the order of the plan."""

    starts: Mapping[BlockKey, int]
    num_elements: int

    @classmethod
    def of(cls, plan: TransferPlan) -> "StagingLayout":
        starts, total = {}, 0
        for key, block in plan.blocks.items():
            starts[key] = total
            total += block.num_elements
        return cls(starts, total)

    def bounds(self, message: Message) -> slice:
        """Of a message's elements."""
        low = self.starts[message.block] + message.start
        return slice(low, low + message.num_elements)


@dataclass(frozen=True, slots=True)
class Staging:
    """A worker's staging memory, where a version is whole before any of it is installed."""

    memory: Tensor
    """[elements], on the device that the offer says."""
    layout: StagingLayout

    def room(self, message: Message) -> Tensor:
        """Where a message's elements go, [elements]."""
        return self.memory[self.layout.bounds(message)]

    def install(self, held: Held, parameter: Tensor) -> None:
        """See Inlet."""
        low, shape = self.layout.starts[held.block] + held.unit.start, held.unit.box.shape
        view = view_region(parameter, held.region, (0,) * len(shape), shape)
        with torch.no_grad():
            view.copy_(self.memory[low : low + held.unit.box.num_elements].view(shape))
