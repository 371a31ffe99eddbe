"""How policy ranks and engine workers find each other and agree on one plan.

    policy rank 0          serves the store, puts `offer`: model, grid, wire dtype, bucket size
    engine worker r        records what its model wants; engine 0's put `wanted-k`; puts `worker-r`: node, digest
    policy rank w          puts `policy-w`: node
    policy rank 0          compares the digests, puts `nodes`
    every peer             plans its own part from `offer`, `wanted-*`, `nodes`; all join the wire

Invariant: what a peer plans from is the same bytes for all, so that no plan needs to be sent.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist

from megarl.models.boxes import Box
from megarl.models.shape import ModelShape
from megarl.models.table import Spec
from megarl.parallel.grid import RankGrid
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.fanout import Fanout
from megarl.reshard.plan import PlanRequest
from megarl.reshard.regions import Region
from megarl.reshard.seal import Seal, SealedStore
from megarl.reshard.signals import PeerFailed, Signals, SignalTimeout, TransportError
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.topology import Topology

Transport = Literal["shared_memory", "network", "mapped"]
"""The channel (channel.py)."""

Targets = Mapping[Box, tuple[Region, ...]]

SESSION = "session"
"""The transfer under which failures before the first publication are recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEndpoint:
    """Where engines find the policy's store, and what makes them members of the session.

    Crosses processes as a plain dict, through Ray and inside an engine: whoever has it may publish.
    """

    host: str
    port: int
    token: str
    """Names this session's messages; a new one for every session. No secret."""
    secret: str = field(repr=False)
    """Seals them; see seal.py."""
    timeout_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def seal_store(self, store: dist.Store) -> SealedStore:
        """The session's part of the store. Keep it as long as anything uses it."""
        return SealedStore(store, secret=self.secret, session=self.token)

    def seal(self) -> Seal:
        """For what goes from peer to peer beside the store."""
        return Seal(self.secret, purpose=f"weights of session {self.token}")


def new_token() -> str:
    """A name no other session has."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the policy publishes, and how."""

    shape: ModelShape
    grid: RankGrid
    virtual: int
    spec: Spec
    tensors: Mapping[str, tuple[int, ...]]
    """Checkpoint tensors and their shapes."""
    dtype: torch.dtype
    """On the wire: the engines' dtype."""
    engines: int
    tensor: int
    """Tensor-parallel ranks of an engine."""
    transport: Transport
    bucket_bytes: int
    device: Literal["cpu", "cuda"]
    """Of the policy's parameters."""
    staging: Literal["host", "device"]
    """Where the engines' workers put what arrives; "mapped" puts it nowhere."""
    delta: bool
    """Send only changed elements where that is smaller."""
    once: bool = False
    """One version is published: who has installed it leaves the session, and keeps no staging memory."""

    @property
    def layout(self) -> PolicyLayout:
        return PolicyLayout(shape=self.shape, grid=self.grid, virtual=self.virtual, spec=self.spec)

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        # The frequencies of positions do not say where weights lie.
        fields["shape"]["rope_scaling"] = None
        return fields | {"dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Offer":
        read = {
            "shape": ModelShape(**fields["shape"]),
            "grid": RankGrid(**fields["grid"]),
            "tensors": {name: tuple(shape) for name, shape in fields["tensors"].items()},
            "dtype": getattr(torch, fields["dtype"]),
        }
        return cls(**fields | read)


def dump_boxes(boxes: Sequence[Box]) -> list[Any]:
    """Boxes as JSON."""
    return [[box.tensor, list(box.start), list(box.stop)] for box in boxes]


def load_boxes(rows: list[Any]) -> list[Box]:
    """Boxes from `dump_boxes`."""
    return [Box(tensor, tuple(start), tuple(stop)) for tensor, start, stop in rows]


def digest(rows: Any) -> str:
    """Short name of a JSON value, equal for equal values."""
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


@contextmanager
def joining(signals: Signals, peer: str) -> Iterator[None]:
    """While a peer joins: its failure is told to all who wait for it, and theirs is raised here as TransportError."""
    try:
        yield
    except PeerFailed as error:
        raise TransportError(f"connecting policy and engines: {error}") from None
    except Exception as error:
        signals.fail(SESSION, f"{peer} failed: {error}")
        raise


def await_messages(signals: Signals, message: str, count: int, *, what: str) -> list[Any]:
    """`message-0` .. `message-{count - 1}` of the session; TransportError naming those that did not come."""
    try:
        return signals.get([f"{message}-{index}" for index in range(count)], transfer=SESSION)
    except SignalTimeout as error:
        missing = sorted(int(key.rsplit("-", 1)[1]) for key in error.missing)
        raise TransportError(f"{what}: {missing} of {count} did not come within the timeout") from None


def await_wanted(signals: Signals, offer: Offer) -> tuple[list[list[Box]], list[str]]:
    """What each tensor rank of an engine wants, and the digests of it."""
    what = "workers of engine 0 that say what they want (all engines must be started and connecting)"
    rows = await_messages(signals, "wanted", offer.tensor, what=what)
    return [load_boxes(of_rank) for of_rank in rows], [digest(of_rank) for of_rank in rows]


def announce_nodes(signals: Signals, offer: Offer, digests: Sequence[str]) -> None:
    """Policy rank 0: tell everyone the nodes, once every engine wants what engine 0 wants."""
    what = "engine workers (engine x tensor + tensor rank) that connect to the policy"
    workers = await_messages(signals, "worker", offer.engines * offer.tensor, what=what)
    for worker, found in enumerate(workers):
        if found["digest"] != digests[worker % offer.tensor]:
            raise TransportError(
                f"engine {worker // offer.tensor} worker {worker % offer.tensor} wants other parts of the weights than "
                "the same worker of engine 0; all engines must run the same model with the same vllm_overrides"
            )
    policy_ranks = await_messages(
        signals, "policy", offer.grid.world_size, what="policy ranks that join the publication"
    )
    names = [*dict.fromkeys([*policy_ranks, *(worker["node"] for worker in workers)])]
    signals.put(
        "nodes", [[names.index(name) for name in policy_ranks], [names.index(worker["node"]) for worker in workers]]
    )


def await_request(
    signals: Signals, offer: Offer, wanted: Sequence[Sequence[Box]], *, fanout: Fanout | None
) -> PlanRequest:
    """What the plans are made from; TransportError when policy rank 0 does not say where everyone is.

    fanout: the only one the session's channel can have, or None.
    """
    try:
        ((policy_nodes, worker_nodes),) = signals.get(["nodes"], transfer=SESSION, grace_s=1.0)
    except SignalTimeout:
        raise TransportError(
            "policy rank 0 did not announce the nodes of all peers: some engine worker or policy rank is missing"
        ) from None
    topology = Topology(
        grid=offer.grid,
        engines=offer.engines,
        tensor=offer.tensor,
        policy_nodes=policy_nodes,
        worker_nodes=worker_nodes,
    )
    boxes = WantedBoxes(wanted)
    if unwanted := sorted(offer.tensors.keys() - boxes.tensors):
        raise TransportError(
            f"no engine worker takes anything of {', '.join(unwanted[:4])} ({len(unwanted)} such tensors): the engines "
            "run another model than the policy"
        )
    return PlanRequest(
        wanted=boxes,
        topology=topology,
        itemsize=offer.dtype.itemsize,
        bucket_bytes=offer.bucket_bytes,
        fanout=fanout,
    )
