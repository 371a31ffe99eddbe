"""A whole publication in one process: every peer's plan, every message with a real buffer, every live parameter.

Elements are numbered through all tensors of the checkpoint, so that one in a wrong place shows.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megarl.models.layout import layout_of
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from megarl.reshard.blocks import Block, BlockKey, WantedBoxes, units_between
from megarl.reshard.fanout import Fanout
from megarl.reshard.plan import Message, PlanRequest, TransferPlan, plan_engine_worker, plan_policy_rank
from megarl.reshard.regions import parameter_key, split_run, view_region
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import Topology
from tests.reshard.wanted import LiveParameter, live_parameters, targets_of

DTYPE = torch.int32
UNTOUCHED = -1


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is published from whom to whom."""

    layout: PolicyLayout
    topology: Topology
    bucket_bytes: int
    fanout: Fanout | None
    own_head: bool = False

    @functools.cached_property
    def live(self) -> tuple[tuple[LiveParameter, ...], ...]:
        """Parameters of each tensor rank of an engine."""
        return tuple(
            live_parameters(self.layout.shape, rank=rank, tensor_size=self.topology.tensor, own_head=self.own_head)
            for rank in range(self.topology.tensor)
        )

    @functools.cached_property
    def request(self) -> PlanRequest:
        return PlanRequest(
            wanted=WantedBoxes([targets_of(parameters) for parameters in self.live]),
            topology=self.topology,
            itemsize=DTYPE.itemsize,
            bucket_bytes=self.bucket_bytes,
            fanout=self.fanout,
        )

    def plans(self) -> list[TransferPlan]:
        """One for every peer, by its number."""
        holdings = list(self.layout.holdings())
        plans = []
        for rank in range(self.layout.grid.world_size):
            plans.append(plan_policy_rank(self.request, self.layout.held_by(rank), rank=rank))
        targets = [targets_of(parameters) for parameters in self.live]
        for worker in range(self.topology.num_workers):
            plans.append(
                plan_engine_worker(self.request, holdings, targets[worker % self.topology.tensor], worker=worker)
            )
        return plans


@dataclass
class Worker:
    """Memory of an engine worker."""

    live: dict[str, Tensor]
    writes: dict[str, Tensor]
    """How often each element of `live` was written."""
    blocks: dict[BlockKey, Tensor] = field(default_factory=dict)
    received: dict[BlockKey, Tensor] = field(default_factory=dict)
    """Which elements of `blocks` are there."""


@dataclass(kw_only=True)
class Outcome:
    tensors: dict[str, Tensor]
    plans: list[TransferPlan]
    workers: list[Worker]
    messages: list[Message]
    """In the order in which they were carried out."""


def number_elements(publication: Publication) -> dict[str, Tensor]:
    """The checkpoint; no value comes twice."""
    tensors, first = {}, 0
    for name, dims in hf_tensors(publication.layout.shape).items():
        size = torch.Size(dims).numel()
        tensors[name] = torch.arange(first, first + size, dtype=DTYPE).view(dims)
        first += size
    return tensors


def simulate(publication: Publication) -> Outcome:
    """Carry the publication out.

    Raises:
        AssertionError: what is sent is not what is received, or a worker sends what it does not have yet.
    """
    tensors, plans = number_elements(publication), publication.plans()
    messages = _agreed_messages(plans)
    policy = fill_policy(publication, tensors)
    workers = [_empty_worker(parameters) for parameters in publication.live * publication.topology.engines]
    world_size = publication.topology.grid.world_size
    for message in messages:
        if message.sender < world_size:
            position = publication.topology.grid.position(message.sender)
            parameters = policy[position.pipeline, position.tensor]
            buffer = _pack(parameters, plans[message.sender].blocks[message.block], message)
        else:
            buffer = _hand_on(workers[message.sender - world_size], message)
        worker = workers[message.receiver - world_size]
        _receive(worker, plans[message.receiver].blocks[message.block], message, buffer)
    return Outcome(tensors=tensors, plans=plans, workers=workers, messages=messages)


def _agreed_messages(plans: list[TransferPlan]) -> list[Message]:
    """All messages in their order; those the senders know are those the receivers know."""
    sent = [message for plan in plans for message in plan.sends]
    received = [message for plan in plans for message in plan.receives]
    assert len(set(sent)) == len(sent)
    assert len(set(received)) == len(received)
    assert set(sent) == set(received)
    for peer, plan in enumerate(plans):
        assert plan.peer == peer
        assert all(message.sender == peer for message in plan.sends)
        assert all(message.receiver == peer for message in plan.receives)
        assert list(plan.sends) == sorted(plan.sends)
        assert list(plan.receives) == sorted(plan.receives)
        # A message is handed on as it came, header and all: not in other cuts, though the elements be the same.
        came = {(message.block, message.start, message.stop) for message in plan.receives}
        if plan.receives:
            assert {(message.block, message.start, message.stop) for message in plan.sends} <= came
    return sorted(sent)


def fill_policy(publication: Publication, tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Parameters by (pipeline, tensor) position; its replicas hold the same."""
    layout = publication.layout
    filled: dict[tuple[int, int], dict[str, Tensor]] = {}
    for pipeline in range(layout.grid.pipeline):
        for tensor in range(layout.grid.tensor):
            ranks = layout_of(
                layout.shape,
                tensor_rank=tensor,
                tensor_size=layout.grid.tensor,
                pipeline_rank=pipeline,
                pipeline_size=layout.grid.pipeline,
                virtual=layout.virtual,
            )
            parameters = filled[pipeline, tensor] = {}
            for entry in list_parameters(layout.shape, ranks, spec=layout.spec):
                parameter = torch.empty(entry.shape, dtype=DTYPE)
                fill_parameter(parameter, entry, lambda box: tensors[box.tensor][box.slices])
                parameters[parameter_key(entry.chunk, entry.name)] = parameter
    return filled


def _empty_worker(parameters: tuple[LiveParameter, ...]) -> Worker:
    return Worker(
        live={parameter.name: torch.full(parameter.shape, UNTOUCHED, dtype=DTYPE) for parameter in parameters},
        writes={parameter.name: torch.zeros(parameter.shape, dtype=DTYPE) for parameter in parameters},
    )


def _runs(block: Block, message: Message) -> Iterator[tuple[slice, list[tuple]]]:
    """The message's buffer piece by piece, with the arguments of `view_region` for every region the piece lies in."""
    first = 0
    for unit, start, stop in units_between(block, message.start, message.stop):
        for corner, part in split_run(unit.box.shape, start, stop):
            size = torch.Size(part).numel()
            yield slice(first, first + size), [(region, corner, part) for region in unit.regions]
            first += size
    assert first == message.num_elements


def _pack(parameters: Mapping[str, Tensor], block: Block, message: Message) -> Tensor:
    """A policy's buffer, from its parameters."""
    buffer = torch.empty(message.num_elements, dtype=DTYPE)
    for where, places in _runs(block, message):
        ((region, corner, part),) = places
        view = view_region(parameters[region.parameter], region, corner, part)
        buffer[where].view(part).copy_(view)
    return buffer


def _hand_on(worker: Worker, message: Message) -> Tensor:
    """A worker's buffer, from what it received before."""
    have = worker.received.get(message.block)
    assert have is not None, f"nothing of the block came before {message}"
    assert have[message.start : message.stop].all(), f"not all of it came before {message}"
    return worker.blocks[message.block][message.start : message.stop].clone()


def _receive(worker: Worker, block: Block, message: Message, buffer: Tensor) -> None:
    """Keep the buffer for those it is handed on to, and write it into the live parameters."""
    if message.block not in worker.blocks:
        worker.blocks[message.block] = torch.full((block.num_elements,), UNTOUCHED, dtype=DTYPE)
        worker.received[message.block] = torch.zeros(block.num_elements, dtype=torch.bool)
    worker.blocks[message.block][message.start : message.stop] = buffer
    worker.received[message.block][message.start : message.stop] = True
    for where, places in _runs(block, message):
        for region, corner, part in places:
            view_region(worker.live[region.parameter], region, corner, part).copy_(buffer[where].view(part))
            view_region(worker.writes[region.parameter], region, corner, part).add_(1)
