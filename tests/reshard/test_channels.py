"""Which channel a session gets, and that both ends of each keep to one interface."""

import inspect
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from megarl.reshard import network, shared_memory
from megarl.reshard.channel import Delivery, Inlet, Outlet, StagingLayout
from megarl.reshard.channels import channel_facts, open_inlet
from megarl.reshard.session import Offer, Transport
from tests.reshard.publication import Setting

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Signals:
    """Keeps what is put."""

    def __init__(self) -> None:
        self.messages: dict[str, Any] = {}

    def put(self, key: str, message: Any) -> None:
        self.messages[key] = message


def offer_of(transport: Transport, **changes: Any) -> Offer:
    return replace(Setting(transport=transport).offer, **changes)


@pytest.mark.parametrize(
    ("transport", "policy", "fanout", "wire"),
    [
        ("network", "cpu", None, CPU),
        ("network", "cuda", None, GPU),  # NCCL
        ("shared_memory", "cpu", "direct", CPU),
        ("shared_memory", "cuda", "direct", CPU),  # gloo carries the headers
    ],
)
def test_what_plan_and_wire_know_of_a_channel(transport: Transport, policy: Any, fanout: Any, wire: Any) -> None:
    facts = channel_facts(offer_of(transport, device=policy), GPU if policy == "cuda" else CPU)
    assert facts == (fanout, wire)


def test_every_transport_has_facts_and_an_inlet() -> None:
    layout = StagingLayout({}, 12)
    for transport in get_args(Transport):
        offer, signals = offer_of(transport), Signals()
        assert channel_facts(offer, CPU).wire_device == CPU
        inlet = open_inlet(offer, layout, signals, worker=3, device=CPU)  # type: ignore[arg-type]
        assert inlet.staging.shape == (12,)
        assert inlet.staging.dtype == offer.dtype
        assert [*signals.messages] == (["memory-3"] if transport == "shared_memory" else [])
        inlet.close()
        inlet.close()  # twice does no harm


@pytest.mark.parametrize("module", [network, shared_memory])
@pytest.mark.parametrize(
    ("protocol", "suffix"), [(Outlet, "Outlet"), (Inlet, "Inlet"), (Delivery, "_Arrival")], ids=str
)
def test_an_end_has_the_methods_of_its_protocol(module: Any, protocol: Any, suffix: str) -> None:
    """And no public one beside them: sender and receiver need know no more."""
    (found,) = [item for name, item in vars(module).items() if name.endswith(suffix) and inspect.isclass(item)]

    def methods(owner: Any) -> dict[str, list[str]]:
        public = {name: item for name, item in vars(owner).items() if inspect.isfunction(item) and name[0] != "_"}
        return {name: [*inspect.signature(item).parameters] for name, item in public.items()}

    assert methods(found) == methods(protocol)
