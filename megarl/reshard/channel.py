"""What a channel is: a way of weights from a policy rank's parameters into an engine worker's staging memory.

Headers always travel by the wire (wire.py), in the order of all peers, and name and seal what they announce; how the
elements themselves come is the channel's: over the wire (network.py), or packed straight into the worker's memory
(shared_memory.py). Sender and receiver know these ends only. A channel is a module with an outlet and an inlet, and a
case in channels.py; one for a policy and an engine on the same GPU would be a third.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megarl.reshard.blocks import BlockKey
from megarl.reshard.message import DENSE, Envelope, Header, make_header, name_parts
from megarl.reshard.packer import Packer
from megarl.reshard.plan import Message, Place, TransferPlan
from megarl.reshard.seal import Seal
from megarl.reshard.tally import Tally
from megarl.reshard.wire import Wire


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is the same for all messages of one publication on a policy rank."""

    version: int
    serial: int
    """Of the publication in its session."""
    packer: Packer
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
    elements: Tensor
    """Its place in staging memory, [elements]."""
    sender: int
    """The peer."""
    what: str
    """For messages: what comes."""
    wire: Wire


class Delivery(Protocol):
    """A message's elements on their way into staging memory."""

    payload: Tensor
    """[bytes] uint8, as they came: what is handed on to other workers."""

    def land(self) -> None:
        """Return when they are in staging memory."""


class Inlet(Protocol):
    """An engine worker's end."""

    staging: Tensor
    """[elements], on the device that the offer says."""

    def start(self, announced: Announced) -> Delivery:
        """Let the elements come."""

    def close(self) -> None:
        """Let nobody else reach the staging memory. Idempotent."""


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
