"""A trainer rank's end of a publication.

    every worker               ready/n-r                       its staging memory may be overwritten
    every rank                 pack -> (compare) -> send       message by message, in the order of all
    every worker               taken/n-r                       everything came and its checksums agree
    rank 0                     verdict/n                       only now may a worker install

Invariants: at most `NUM_SLOTS` packed messages are in memory, beside the copy of the last publication where only
changes are sent; packing a message overlaps the sending of the one before; a publication ends for all workers with
the verdict or for none; after a failure the session is over, and the error names version, peers and tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.blocks import BlockKey
from megarl.reshard.checksum import Checksums
from megarl.reshard.delta import encode_changes, encoded_bytes_at_least, find_changes
from megarl.reshard.message import DENSE, SPARSE, Envelope, Header, make_header, name_parts
from megarl.reshard.pack import PartsTable, compute_part_checksums, pack_range
from megarl.reshard.plan import NUM_SLOTS, Message, Place, TransferPlan, plan_trainer
from megarl.reshard.seal import new_secret
from megarl.reshard.session import (
    SESSION,
    Offer,
    WeightEndpoint,
    announce_nodes,
    await_request,
    await_wanted,
    joining,
    new_token,
)
from megarl.reshard.signals import (
    PeerFailed,
    Signals,
    SignalTimeout,
    TransportError,
    connect_store,
    serve_store,
    waited_for,
)
from megarl.reshard.staging import node_name, open_shared
from megarl.reshard.tally import PublishReport, Tally
from megarl.reshard.topology import Topology
from megarl.reshard.wire import Flight, Wire, local_address

_GRACE_S = 2.0  # rank 0 asks last: a worker that sees a peer fail knows more about it


class _Slot:
    """A buffer for one packed message and what still reads it."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self.flights: list[Flight] = []

    def room(self, num_elements: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[num_elements], free to write."""
        if self._buffer is None or self._buffer.numel() < num_elements:
            self._buffer = torch.empty(num_elements, dtype=dtype, device=device)
        return self._buffer[:num_elements]

    def land(self) -> None:
        for flight in self.flights:
            flight.land()
        self.flights = []


def serve_weights(host: str, *, timeout_s: float) -> tuple[dist.TCPStore, WeightEndpoint]:
    """Policy rank 0: open the store of a new session. TransportError when the address cannot be bound."""
    store, port = serve_store(host, 0, timeout_s)
    return store, WeightEndpoint(host=host, port=port, token=new_token(), secret=new_secret(), timeout_s=timeout_s)


class WeightSender:
    """See the module. Build it on every trainer rank at once, while the engines connect."""

    def __init__(
        self,
        endpoint: WeightEndpoint,
        offer: Offer,
        parameters: Mapping[str, Tensor],
        *,
        rank: int,
        store: dist.Store | None = None,
    ) -> None:
        """Meet all peers and plan.

        parameters: this rank's, by `regions.parameter_key`. store: rank 0's own, from `serve_weights`.

        Raises:
            TransportError: peers did not come, or engines do not fit each other.
            LayoutError: the engines want what the trainer does not hold.
        """
        self._rank, self._offer, self._timeout_s = rank, offer, endpoint.timeout_s
        self._parameters = parameters
        self._device = torch.device(offer.device)
        self._serial = 0
        self._published: dict[Place, Tensor] = {}
        self._slots = [_Slot() for _ in range(NUM_SLOTS)]
        self._seal = endpoint.seal()
        self._checksums = Checksums(self._seal)
        sealed = endpoint.seal_store(store or connect_store(endpoint.host, endpoint.port, endpoint.timeout_s))
        signals = Signals(sealed, timeout_s=endpoint.timeout_s)
        self._signals: Signals | None = signals
        with joining(signals, f"policy rank {rank}"):
            self._topology, self.plan = self._agree(signals)
            self._parts = PartsTable(self.plan.blocks)
            self._memory = self._open_memory(signals) if offer.transport == "shared_memory" else {}
            self._wire = Wire(
                sealed,
                address=local_address(endpoint.host, endpoint.port),
                peer=rank,
                num_peers=self._topology.num_peers,
                timeout_s=endpoint.timeout_s,
                device=self._device if offer.by_nccl else torch.device("cpu"),
                describe_peer=self._topology.describe_peer,
            )

    def _agree(self, signals: Signals) -> tuple[Topology, TransferPlan]:
        offer = self._offer
        signals.put(f"trainer-{self._rank}", node_name())
        if self._rank == 0:
            signals.put("offer", offer.as_json())
        wanted, digests = await_wanted(signals, offer)
        if self._rank == 0:
            announce_nodes(signals, offer, digests)
        request = await_request(signals, offer, wanted)
        return request.topology, plan_trainer(request, offer.layout.held_by(self._rank), rank=self._rank)

    def _open_memory(self, signals: Signals) -> dict[int, tuple[Tensor, dict[BlockKey, int]]]:
        """(staging memory, first element of each block in it) of every worker this rank packs into."""
        memory = {}
        for peer in sorted({message.receiver for message in self.plan.sends}):
            key = f"memory-{peer - self._topology.grid.world_size}"
            try:
                (found,) = signals.get([key], transfer=SESSION)
            except SignalTimeout:
                raise TransportError(f"{self._topology.describe_peer(peer)} did not say where its memory is") from None
            data = open_shared(found["address"], self._offer.dtype, owner=self._topology.describe_peer(peer))
            starts = {BlockKey.from_json(key): start for key, start in found["blocks"]}
            memory[peer] = data, starts
        return memory

    def publish(self, version: int) -> PublishReport:
        """Send the parameters' present values to every engine and return when all workers have them, checked.

        Raises:
            TransportError: a peer failed, stalled or got changed bytes. No worker installs the version, and this
                sender is closed: connect anew to publish again.
        """
        if self._signals is None:
            raise TransportError(
                f"publishing weights version {version}: the session ended with an earlier failure; connect the "
                "engines anew"
            )
        self._serial += 1
        tally = Tally()
        with self._failing(version):
            with tally.time("ready_s"):
                self._await("ready", {message.receiver for message in self.plan.sends}, "begin to receive")
            self._send_all(version, tally)
            with tally.time("wire_s"):
                self._conclude()
        return tally.report(version)

    def _send_all(self, version: int, tally: Tally) -> None:
        by_place = groupby(self.plan.sends, key=lambda message: message.place)
        for index, (place, messages) in enumerate(by_place):
            slot = self._slots[index % NUM_SLOTS]
            with tally.time("wire_s"):
                slot.land()
            if self._offer.transport == "shared_memory":
                for message in messages:
                    self._pack_into_memory(version, place, message, slot, tally)
            else:
                self._pack_and_send(version, place, list(messages), slot, tally)
        with tally.time("wire_s"):
            for slot in self._slots:
                slot.land()

    def _pack_and_send(
        self, version: int, place: Place, messages: Sequence[Message], slot: _Slot, tally: Tally
    ) -> None:
        packed = slot.room(place[2] - place[1], dtype=self._offer.dtype, device=self._device)
        checksums = self._pack(place, packed, tally)
        with tally.time("pack_s"):
            kind, payload = self._encode(place, packed, tally)
        header = self._header(place, Header(version, kind, payload.numel(), tuple(checksums))).to(self._device)
        what = f"version {version}, {name_parts(self._parts.of(place))},"
        for message in messages:
            slot.flights.append(self._wire.send(header, message.receiver, what=what))
            slot.flights.append(self._wire.send(payload, message.receiver, what=what))
            tally.sent(payload.numel(), packed.nbytes)

    def _pack_into_memory(self, version: int, place: Place, message: Message, slot: _Slot, tally: Tally) -> None:
        memory, starts = self._memory[message.receiver]
        low = starts[message.block] + message.start
        target = memory[low : low + message.num_elements]
        checksums = self._pack(place, target, tally)
        header = self._header(place, Header(version, DENSE, target.nbytes, tuple(checksums)))
        what = f"version {version}, {name_parts(self._parts.of(place))},"
        slot.flights.append(self._wire.send(header, message.receiver, what=what))
        tally.sent(target.nbytes, target.nbytes)

    def _header(self, place: Place, header: Header) -> Tensor:
        return make_header(header, Envelope(self._seal, self._serial, place))

    def _pack(self, place: Place, out: Tensor, tally: Tally) -> list[int]:
        """Fill `out` with the place's elements; returns their checksums, part by part."""
        key, start, stop = place
        with tally.time("pack_s"):
            pack_range(self._parameters, self.plan.blocks[key], start, stop, out=out)
        with tally.time("checksum_s"):
            return compute_part_checksums(out, self._parts.of(place), self._checksums)

    def _encode(self, place: Place, packed: Tensor, tally: Tally) -> tuple[int, Tensor]:
        """(kind, bytes) of the message: what changed since the last publication, where that is smaller."""
        dense = packed.view(torch.uint8)
        if not self._offer.delta:
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

    def _conclude(self) -> None:
        """Rank 0 hears every worker and gives the verdict; the others wait for it."""
        if self._rank == 0:
            first = self._topology.grid.world_size
            takers = set(range(first, first + self._topology.num_takers))
            self._await("taken", takers, "take and check everything", grace_s=_GRACE_S)
            self._live.put(f"{self._transfer}/verdict", True)
            self._drop_older()
            return
        try:
            self._live.get([f"{self._transfer}/verdict"], transfer=self._transfer, grace_s=2 * _GRACE_S)
        except SignalTimeout:
            raise waited_for(0, "policy rank 0 gave no verdict within the timeout") from None

    @property
    def _transfer(self) -> str:
        return f"publication-{self._serial}"

    @property
    def _live(self) -> Signals:
        assert self._signals is not None
        return self._signals

    def _await(self, message: str, peers: set[int], verb: str, *, grace_s: float = 0.0) -> None:
        """`message` of every one of the workers; TransportError naming those that did not `verb`."""
        ordered = sorted(peers)
        keys = [f"{self._transfer}/{message}-{peer - self._topology.grid.world_size}" for peer in ordered]
        try:
            self._live.get(keys, transfer=self._transfer, grace_s=grace_s)
        except SignalTimeout as error:
            silent = [peer for peer, key in zip(ordered, keys, strict=True) if key in error.missing]
            names = ", ".join(map(self._topology.describe_peer, silent))
            raise waited_for(silent[0], f"{names} did not {verb} within {self._timeout_s:g} s") from None

    def _drop_older(self) -> None:
        """Forget the messages of the publication before this one, which everyone has read."""
        older = f"publication-{self._serial - 1}"
        if self._serial > 1:
            takers = range(self._topology.num_takers)
            workers = [f"{older}/{message}-{taker}" for message in ("ready", "taken") for taker in takers]
            self._live.drop([*workers, f"{older}/verdict"])

    @contextmanager
    def _failing(self, version: int) -> Iterator[None]:
        """Tell the others why this rank stopped, end the session, and put the version into the text."""
        try:
            yield
        except PeerFailed as error:
            self.close()
            raise TransportError(f"publishing weights version {version}: {error}") from None
        except BaseException as error:
            name = self._topology.describe_peer(self._rank)
            reason = self._live.tell(self._transfer, error, peer=self._rank, name=name)
            self.close()
            if isinstance(error, (TransportError, dist.DistError)):
                raise TransportError(f"publishing weights version {version}: {reason}") from error
            raise

    def close(self) -> None:
        """Leave the wire and free buffers; the store goes with its last reference. Idempotent."""
        self._wire.close()
        self._signals = None
        self._memory, self._published, self._slots = {}, {}, []
