"""The channel over the wire: gloo from host memory, NCCL from a GPU's.

A policy rank packs a place once for all its receivers, into one of `NUM_SLOTS` buffers, and sends it while the next
is packed; where only changes are sent it keeps a copy of the last publication. A worker receives straight into its
staging memory unless what comes are changes, or comes on another device.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from megarl.reshard.channel import Announced, Held, Publication, Staging, StagingLayout
from megarl.reshard.delta import apply_changes, encode_changes, encoded_bytes_at_least, find_changes
from megarl.reshard.message import DENSE, SPARSE
from megarl.reshard.plan import NUM_SLOTS, Place
from megarl.reshard.signals import TransportError
from megarl.reshard.staging import make_private
from megarl.reshard.tally import Tally
from megarl.reshard.wire import Flight


@dataclass(slots=True)
class _Slot:
    """A buffer for one packed place and what still reads it."""

    buffer: Tensor
    flights: list[Flight] = field(default_factory=list)

    def room(self, num_elements: int) -> Tensor:
        """[num_elements], free to write."""
        if self.buffer.numel() < num_elements:
            self.buffer = self.buffer.new_empty(num_elements)
        return self.buffer[:num_elements]

    def land(self) -> None:
        for flight in self.flights:
            flight.land()
        self.flights = []


class NetworkOutlet:
    """See channel.Outlet."""

    def __init__(self, dtype: torch.dtype, device: torch.device, *, delta: bool) -> None:
        """delta: send only changes where that is smaller."""
        self._slots = [_Slot(torch.empty(0, dtype=dtype, device=device)) for _ in range(NUM_SLOTS)]
        self._delta = delta
        self._published: dict[Place, Tensor] = {}

    def send(self, place: Place, receivers: list[int], publication: Publication) -> None:
        tally, wire = publication.tally, publication.wire
        slot = self._slots[0]
        self._slots = [*self._slots[1:], slot]
        with tally.time("wire_s"):
            slot.land()
        packed = slot.room(place[2] - place[1])
        checksums = publication.pack(place, packed)
        with tally.time("pack_s"):
            kind, payload = self._encode(place, packed, tally)
        header = publication.header(place, num_bytes=payload.numel(), checksums=checksums, kind=kind)
        what = publication.what(place)
        for receiver in receivers:
            slot.flights.append(wire.send(header, receiver, what=what))
            slot.flights.append(wire.send(payload, receiver, what=what))
            tally.sent(payload.numel(), packed.nbytes)

    def _encode(self, place: Place, packed: Tensor, tally: Tally) -> tuple[int, Tensor]:
        """(kind, bytes) of the message: what changed since the last publication, where that is smaller."""
        dense = packed.view(torch.uint8)
        if not self._delta:
            return DENSE, dense
        before = self._published.get(place)
        if before is None:
            self._published[place] = packed.clone()
            return DENSE, dense
        positions = find_changes(packed, before)
        tally.compared(positions.numel(), packed.numel())
        before.copy_(packed)
        if encoded_bytes_at_least(positions.numel(), packed.itemsize) < dense.numel():
            encoded = encode_changes(packed, positions)
            if encoded.numel() < dense.numel():
                return SPARSE, encoded
        return DENSE, dense

    def land(self, tally: Tally) -> None:
        with tally.time("wire_s"):
            for slot in self._slots:
                slot.land()

    def close(self) -> None:
        self._slots, self._published = [], {}


@dataclass(slots=True)
class _Arrival:
    """See channel.Delivery."""

    payload: Tensor
    flight: Flight
    announced: Announced
    room: Tensor

    def land(self) -> Tensor:
        self.flight.land()
        if self.announced.header.kind != DENSE:
            try:
                apply_changes(self.room, self.payload.to(self.room.device))
            except ValueError as error:
                raise TransportError(f"{self.announced.what} {error}") from None
        elif self.payload.data_ptr() != self.room.data_ptr():
            self.room.view(torch.uint8).copy_(self.payload)
        return self.room


class NetworkInlet:
    """See channel.Inlet."""

    def __init__(self, layout: StagingLayout, dtype: torch.dtype, device: torch.device) -> None:
        self._staging = Staging(make_private(layout.num_elements, dtype, device), layout)

    def start(self, announced: Announced) -> _Arrival:
        header, wire, room = announced.header, announced.wire, self._staging.room(announced.message)
        if header.kind != DENSE or room.device != wire.device:
            payload = torch.empty(header.num_bytes, dtype=torch.uint8, device=wire.device)
        else:
            payload = room.view(torch.uint8)
        flight = wire.receive(payload, announced.message.sender, what=announced.what)
        return _Arrival(payload, flight, announced, room)

    def install(self, held: Held, parameter: Tensor) -> None:
        self._staging.install(held, parameter)

    def close(self) -> None:
        """Its memory is its own."""
