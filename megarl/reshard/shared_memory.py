"""The channel within a host: a policy rank packs straight into the workers' staging memory.

Each worker puts into the store where its memory is: a file without a name, or a GPU's by CUDA IPC, which is how ranks
and workers that share a GPU meet today (staging.py). The header tells the worker that a message is there.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.reshard.blocks import BlockKey
from megarl.reshard.channel import Announced, Publication, StagingLayout
from megarl.reshard.plan import NUM_SLOTS, Message, Place
from megarl.reshard.session import SESSION
from megarl.reshard.signals import Signals, SignalTimeout, TransportError
from megarl.reshard.staging import close_shared, make_shared, open_shared
from megarl.reshard.tally import Tally
from megarl.reshard.topology import Topology
from megarl.reshard.wire import Flight


class SharedMemoryOutlet:
    """See channel.Outlet."""

    def __init__(self, signals: Signals, topology: Topology, sends: Sequence[Message], dtype: torch.dtype) -> None:
        """Open the memory of every worker that gets something.

        Raises:
            TransportError: a worker did not say where its memory is, or it cannot be reached from here.
        """
        self._memory = {
            peer: _open_memory(signals, topology, peer, dtype) for peer in sorted({send.receiver for send in sends})
        }
        self._flights: deque[list[Flight]] = deque()

    def send(self, place: Place, receivers: list[int], publication: Publication) -> None:
        key, start, stop = place
        with publication.tally.time("wire_s"):
            while len(self._flights) >= NUM_SLOTS:
                _land(self._flights.popleft())
        flights: list[Flight] = []
        self._flights.append(flights)
        what = publication.what(place)
        for receiver in receivers:
            memory, starts = self._memory[receiver]
            target = memory[starts[key] + start : starts[key] + stop]
            header = publication.header(place, num_bytes=target.nbytes, checksums=publication.pack(place, target))
            flights.append(publication.wire.send(header, receiver, what=what))
            publication.tally.sent(target.nbytes, target.nbytes)

    def land(self, tally: Tally) -> None:
        with tally.time("wire_s"):
            while self._flights:
                _land(self._flights.popleft())

    def close(self) -> None:
        self._memory = {}
        self._flights.clear()


def _land(flights: list[Flight]) -> None:
    for flight in flights:
        flight.land()


def _open_memory(
    signals: Signals, topology: Topology, peer: int, dtype: torch.dtype
) -> tuple[Tensor, dict[BlockKey, int]]:
    """(staging memory, first element of each block in it) of one worker."""
    owner = topology.describe_peer(peer)
    try:
        (found,) = signals.get([f"memory-{peer - topology.grid.world_size}"], transfer=SESSION)
    except SignalTimeout:
        raise TransportError(f"{owner} did not say where its memory is") from None
    return open_shared(found["address"], dtype, owner=owner), {
        BlockKey.from_json(key): start for key, start in found["blocks"]
    }


@dataclass(slots=True)
class _Arrival:
    """See channel.Delivery: what the header announces is there already."""

    payload: Tensor

    def land(self) -> None:
        """Nothing to wait for."""


class SharedMemoryInlet:
    """See channel.Inlet."""

    def __init__(
        self, signals: Signals, layout: StagingLayout, dtype: torch.dtype, device: torch.device, *, worker: int
    ) -> None:
        """Make the memory and say where it is."""
        self.staging, self._address = make_shared(layout.num_elements, dtype, device)
        blocks = [[key.as_json(), start] for key, start in layout.starts.items()]
        signals.put(f"memory-{worker}", {"address": self._address, "blocks": blocks})

    def start(self, announced: Announced) -> _Arrival:
        return _Arrival(announced.elements.view(torch.uint8))

    def close(self) -> None:
        close_shared(self._address)
        self._address = {}
