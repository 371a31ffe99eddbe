"""Which channel a session uses, and its ends."""

from collections.abc import Mapping
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from megarl.reshard.channel import Inlet, Outlet, StagingLayout
from megarl.reshard.fanout import Fanout
from megarl.reshard.mapped import MappedInlet, MappedOutlet
from megarl.reshard.network import NetworkInlet, NetworkOutlet
from megarl.reshard.plan import PlanRequest, TransferPlan
from megarl.reshard.session import Offer
from megarl.reshard.shared_memory import SharedMemoryInlet, SharedMemoryOutlet
from megarl.reshard.signals import Signals
from megarl.reshard.stored import StoredWeights
from megarl.reshard.topology import Topology


class ChannelFacts(NamedTuple):
    """What the plan and the wire must know of a channel."""

    fanout: Fanout | None
    """The one it can have; None for any."""
    wire_device: torch.device
    """Where the wire's messages lie."""


def channel_facts(offer: Offer, device: torch.device) -> ChannelFacts:
    """device: of this peer's parameters."""
    match offer.transport:
        case "network":
            return ChannelFacts(None, device if offer.device == "cuda" else torch.device("cpu"))
        case "shared_memory" | "mapped":
            return ChannelFacts("direct", torch.device("cpu"))  # headers only
    assert_never(offer.transport)


def open_outlet(
    offer: Offer,
    plan: TransferPlan,
    parameters: Mapping[str, Tensor] | StoredWeights,
    topology: Topology,
    signals: Signals,
) -> Outlet:
    """A policy rank's end. Raises TransportError."""
    match offer.transport:
        case "network":
            return NetworkOutlet(offer.dtype, torch.device(offer.device), delta=offer.delta)
        case "shared_memory":
            return SharedMemoryOutlet(signals, topology, plan.sends, offer.dtype)
        case "mapped":
            if isinstance(parameters, StoredWeights):
                raise ValueError("weights that are read from a checkpoint lie nowhere that an engine could map")
            return MappedOutlet(signals, topology, plan, parameters, offer.dtype)
    assert_never(offer.transport)


def open_inlet(
    offer: Offer, plan: TransferPlan, request: PlanRequest, signals: Signals, *, worker: int, device: torch.device
) -> Inlet:
    """An engine worker's end; device: the model's. Raises TransportError."""
    place = device if offer.staging == "device" else torch.device("cpu")
    match offer.transport:
        case "network":
            return NetworkInlet(StagingLayout.of(plan), offer.dtype, place)
        case "shared_memory":
            return SharedMemoryInlet(signals, StagingLayout.of(plan), offer.dtype, place, worker=worker)
        case "mapped":
            return MappedInlet(signals, offer, plan, request, worker=worker, device=device)
    assert_never(offer.transport)
