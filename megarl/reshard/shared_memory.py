"""The channel within a host: a policy rank packs straight into the workers' staging memory.

Each worker puts into the store where its memory is: a file without a name, or a GPU's by CUDA IPC (staging.py). The
header tells the worker that a message is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megarl.reshard.blocks import BlockKey
from megarl.reshard.channel import Announced, Held, Publication, Staging, StagingLayout
from megarl.reshard.flights import PlaceFlights
from megarl.reshard.plan import Message, Place
from megarl.reshard.session import SESSION
from megarl.reshard.signals import Signals, SignalTimeout, TransportError
from megarl.reshard.staging import OpenedMemory, SharedMemory
from megarl.reshard.tally import Tally
from megarl.reshard.topology import Topology


class SharedMemoryOutlet:
    """See channel.Outlet."""

    def __init__(self, signals: Signals, topology: Topology, sends: Sequence[Message], dtype: torch.dtype) -> None:
        """Open the memory of every worker that gets something.

        Raises:
            TransportError: a worker did not say where its memory is, or it cannot be reached from here.
        """
        self._memory: dict[int, _WorkerMemory] = {}
        for peer in sorted({send.receiver for send in sends}):
            self._memory[peer] = _open_memory(signals, topology, peer, dtype)
        self._flights = PlaceFlights()

    def send(self, place: Place, receivers: list[int], publication: Publication) -> None:
        key, start, stop = place
        flights = self._flights.begin(publication.tally)
        what = publication.what(place)
        for receiver in receivers:
            memory = self._memory[receiver]
            target = memory.opened.data[memory.starts[key] + start : memory.starts[key] + stop]
            header = publication.header(place, num_bytes=target.nbytes, checksums=publication.pack(place, target))
            flights.append(publication.wire.send(header, receiver, what=what))
            publication.tally.sent(target.nbytes, target.nbytes)

    def land(self, tally: Tally) -> None:
        self._flights.land(tally)

    def close(self) -> None:
        self._flights.forget()
        for memory in self._memory.values():
            memory.opened.close()
        self._memory = {}


class _WorkerMemory(NamedTuple):
    """Of one worker."""

    opened: OpenedMemory
    starts: dict[BlockKey, int]
    """The first element of each block in it."""


def _open_memory(signals: Signals, topology: Topology, peer: int, dtype: torch.dtype) -> _WorkerMemory:
    owner = topology.describe_peer(peer)
    try:
        (found,) = signals.get([f"memory-{peer - topology.grid.world_size}"], transfer=SESSION)
    except SignalTimeout:
        raise TransportError(f"{owner} did not say where its memory is") from None
    starts = {BlockKey.from_json(key): start for key, start in found["blocks"]}
    return _WorkerMemory(OpenedMemory(found["address"], dtype, owner=owner), starts)


@dataclass(slots=True)
class _Arrival:
    """See channel.Delivery: what the header announces is there already."""

    payload: Tensor
    room: Tensor

    def land(self) -> Tensor:
        return self.room


class SharedMemoryInlet:
    """See channel.Inlet."""

    def __init__(
        self, signals: Signals, layout: StagingLayout, dtype: torch.dtype, device: torch.device, *, worker: int
    ) -> None:
        """Make the memory and say where it is."""
        self._memory = SharedMemory(layout.num_elements, dtype, device)
        self._staging = Staging(self._memory.data, layout)
        blocks = [[key.as_json(), start] for key, start in layout.starts.items()]
        signals.put(f"memory-{worker}", {"address": self._memory.address, "blocks": blocks})

    def start(self, announced: Announced) -> _Arrival:
        room = self._staging.room(announced.message)
        return _Arrival(room.view(torch.uint8), room)

    def install(self, held: Held, parameter: Tensor) -> None:
        self._staging.install(held, parameter)

    def close(self) -> None:
        self._memory.close()
