"""Which channel a session gets, and that both ends of each keep to one interface."""

import inspect
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from megarl.models.boxes import Box
from megarl.parallel.grid import RankGrid
from megarl.reshard import mapped, network, shared_memory
from megarl.reshard.blocks import Block, BlockKey, Holders, Unit, WantedBoxes
from megarl.reshard.channel import Delivery, Inlet, Outlet
from megarl.reshard.channels import channel_facts, open_inlet
from megarl.reshard.plan import PlanRequest, TransferPlan
from megarl.reshard.regions import Region
from megarl.reshard.session import Offer, Transport
from megarl.reshard.topology import pack_nodes
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
        ("mapped", "cpu", "direct", CPU),  # what the wire of peers that share a GPU can carry
    ],
)
def test_what_plan_and_wire_know_of_a_channel(transport: Transport, policy: Any, fanout: Any, wire: Any) -> None:
    facts = channel_facts(offer_of(transport, device=policy), GPU if policy == "cuda" else CPU)
    assert facts == (fanout, wire)


KEY = BlockKey(Holders(0), (0,))
BLOCK = Block(KEY, 12, (Unit(0, Box("norm", (0,), (12,)), (Region("norm", 0, (1,)),)),))


def plan_of_worker() -> TransferPlan:
    return TransferPlan(
        peer=4,
        itemsize=4,
        fanout="direct",
        blocks={KEY: BLOCK},
        sends=(),
        receives=(),
        bound_elements=12,
        estimated_s=0.0,
    )


def test_every_transport_has_facts_and_an_inlet() -> None:
    wanted = PlanRequest(
        wanted=WantedBoxes([()]),
        topology=pack_nodes(grid=RankGrid(tensor=1, pipeline=1, data=1), engines=4, tensor=1, gpus_per_node=8),
        itemsize=4,
        bucket_bytes=64,
    )
    for transport in get_args(Transport):
        offer, signals = offer_of(transport), Signals()
        assert channel_facts(offer, CPU).wire_device == CPU
        inlet = open_inlet(offer, plan_of_worker(), wanted, signals, worker=3, device=CPU)  # type: ignore[arg-type]
        assert [*signals.messages] == (["memory-3"] if transport == "shared_memory" else [])
        inlet.close()
        inlet.close()  # twice does no harm


@pytest.mark.parametrize("module", [network, shared_memory, mapped])
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
