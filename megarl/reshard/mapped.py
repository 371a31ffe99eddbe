"""The channel without staging, where policy and engines take turns on the GPUs of one node (cluster.colocate).

    once        a policy rank tells each worker that takes something of it where its parameters lie (CUDA IPC)
    a version   the rank packs place after place, for their checksums alone, and sends the headers by the wire; the
                worker packs the same places out of the policy's parameters, compares, and lets them go
    a verdict   the worker copies out of the policy's parameters into its own, with nothing in between

Invariants: beside the policy's weights and the engine's there is no copy larger than a message. What was checked is
what is installed, because a policy that has given way changes no weight before every engine sleeps again
(controller/turns.py, policy/worker.py). A worker opens the memory of any GPU of the node as its own GPU's, as NCCL
does: its GPU does the copying, over NVLink where the memory is another's, and nothing of CUDA's is made on that other
GPU.

Holders of a block share its readers evenly (fanout.py), so that a worker reads from the rank on its own GPU where ranks
and workers lie in one order, as much as that rank has for it.

Never run on a GPU: the tests have files in the place of CUDA IPC, and everything else of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megarl.reshard.blocks import Block, BlockKey, cut_source_blocks, units_between
from megarl.reshard.channel import Announced, Held, Publication
from megarl.reshard.cuda_ipc import export_cuda, import_cuda
from megarl.reshard.flights import PlaceFlights
from megarl.reshard.pack import pack_range
from megarl.reshard.plan import Message, Place, PlanRequest, TransferPlan
from megarl.reshard.regions import split_run, view_region
from megarl.reshard.session import SESSION, Offer
from megarl.reshard.signals import Signals, SignalTimeout, TransportError
from megarl.reshard.tally import Tally
from megarl.reshard.topology import Topology


class MappedOutlet:
    """See channel.Outlet."""

    def __init__(
        self,
        signals: Signals,
        topology: Topology,
        plan: TransferPlan,
        parameters: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Tell every worker that gets something where the parameters are. dtype: of the checksums' elements."""
        self._dtype = dtype
        self._device = next(iter(parameters.values())).device
        units = (unit for block in plan.blocks.values() for unit in block.units)
        sent = {name: parameters[name] for name in sorted({unit.regions[0].parameter for unit in units})}
        for peer in sorted({send.receiver for send in plan.sends}):
            # An export each: torch counts for every one of them whether the other side still has it.
            signals.put(_key(plan.peer, peer - topology.grid.world_size), export_parameters(sent))
        self._flights = PlaceFlights()

    def send(self, place: Place, receivers: list[int], publication: Publication) -> None:
        flights = self._flights.begin(publication.tally)
        _, start, stop = place
        packed = torch.empty(stop - start, dtype=self._dtype, device=self._device)
        checksums = publication.pack(place, packed)
        header = publication.header(place, num_bytes=packed.nbytes, checksums=checksums)
        what = publication.what(place)
        flights += [publication.wire.send(header, receiver, what=what) for receiver in receivers]
        for _ in receivers:
            publication.tally.sent(packed.nbytes, packed.nbytes)

    def land(self, tally: Tally) -> None:
        self._flights.land(tally)

    def close(self) -> None:
        self._flights.forget()


def _key(rank: int, worker: int) -> str:
    return f"parameters-{rank}-{worker}"


def export_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """As JSON: the memory behind contiguous parameters, each storage once, and where in it each of them lies."""
    memory: dict[int, dict[str, Any]] = {}
    places: dict[str, list[Any]] = {}
    numbers: dict[int, int] = {}
    for name, parameter in parameters.items():
        storage = parameter.untyped_storage()
        number = numbers.setdefault(storage.data_ptr(), len(numbers))
        if number not in memory:
            memory[number] = export_cuda(torch.empty(0, dtype=torch.uint8, device=parameter.device).set_(storage))
        dtype = str(parameter.dtype).removeprefix("torch.")
        places[name] = [number, dtype, parameter.storage_offset(), parameter.numel()]
    return {"memory": [*memory.values()], "places": places}


def open_parameters(exported: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The policy's parameters, [elements] each, as memory of `device`. Not to be written to.

    Raises TransportError where they cannot be reached from here.
    """
    memory = [import_cuda(found, torch.uint8, on=device) for found in exported["memory"]]
    return {
        name: memory[number].view(getattr(torch, dtype))[offset : offset + num_elements]
        for name, (number, dtype, offset, num_elements) in exported["places"].items()
    }


class _Source(NamedTuple):
    """A policy rank, as a worker sees it."""

    parameters: Mapping[str, Tensor]
    blocks: Mapping[BlockKey, Block]


class _Range(NamedTuple):
    """Elements [start, stop) of a block, which come from one policy rank."""

    start: int
    stop: int
    sender: int


@dataclass(slots=True)
class _Arrival:
    """See channel.Delivery."""

    source: _Source
    message: Message
    room: Tensor
    """[0] of the dtype and on the device that they are packed to."""
    payload: Tensor
    """[0]: it is handed on to nobody."""

    def land(self) -> Tensor:
        block, start, stop = self.message.place
        packed = self.room.new_empty(stop - start)
        pack_range(self.source.parameters, self.source.blocks[block], start, stop, out=packed)
        return packed


class MappedInlet:
    """See channel.Inlet."""

    def __init__(
        self,
        signals: Signals,
        offer: Offer,
        plan: TransferPlan,
        request: PlanRequest,
        *,
        worker: int,
        device: torch.device,
    ) -> None:
        """Open the parameters of every policy rank that sends something.

        Raises:
            TransportError: a rank did not say where they are, or they cannot be reached from here.
        """
        self._room = torch.empty(0, dtype=offer.dtype, device=device)
        self._sources: dict[int, _Source] = {}
        for rank in sorted({message.sender for message in plan.receives}):
            try:
                (found,) = signals.get([_key(rank, worker)], transfer=SESSION)
            except SignalTimeout:
                raise TransportError(f"policy rank {rank} did not say where its parameters are") from None
            blocks = [
                block for holding in offer.layout.held_by(rank) for block in cut_source_blocks(holding, request.wanted)
            ]
            self._sources[rank] = _Source(open_parameters(found, device), {block.key: block for block in blocks})
        self._ranges = _join_ranges(plan.receives)

    def start(self, announced: Announced) -> _Arrival:
        nothing = self._room.view(torch.uint8)
        return _Arrival(self._sources[announced.message.sender], announced.message, self._room, nothing)

    def install(self, held: Held, parameter: Tensor) -> None:
        with torch.no_grad():
            for here, there in self._pairs(held, parameter):
                here.copy_(there)

    def _pairs(self, held: Held, parameter: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(in the parameter, in the policy's), piece by piece of a unit."""
        low, high = held.unit.start, held.unit.start + held.unit.box.num_elements
        for start, stop, sender in self._ranges[held.block]:
            first, last = max(low, start), min(high, stop)
            if first >= last:
                continue
            source = self._sources[sender]
            ((unit, begin, end),) = units_between(source.blocks[held.block], first, last)
            (region,) = unit.regions
            for corner, shape in split_run(unit.box.shape, begin, end):
                there = view_region(source.parameters[region.parameter], region, corner, shape)
                yield view_region(parameter, held.region, corner, shape), there

    def close(self) -> None:
        self._sources = {}


def _join_ranges(receives: tuple[Message, ...]) -> dict[BlockKey, list[_Range]]:
    """What comes of each block from whom, neighbouring messages of one rank together."""
    ranges: dict[BlockKey, list[_Range]] = {}
    for message in sorted(receives, key=lambda message: (message.block, message.start)):
        of_block = ranges.setdefault(message.block, [])
        if of_block and of_block[-1].sender == message.sender and of_block[-1].stop == message.start:
            of_block[-1] = of_block[-1]._replace(stop=message.stop)
        else:
            of_block.append(_Range(message.start, message.stop, message.sender))
    return ranges
