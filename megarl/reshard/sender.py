"""A policy rank's end of a publication.

    every worker               ready/n-r                       its staging memory may be overwritten
    every rank                 pack -> send, by the channel    message by message, in the order of all
    every worker               taken/n-r                       everything came and its checksums agree
    rank 0                     verdict/n                       only now may a worker install

Invariants: packing a message overlaps the sending of the one before; a publication ends for all workers with the
verdict or for none; after a failure the session is over, and the error names version, peers and tensors.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.channel import Packs, Publication
from megarl.reshard.channels import channel_facts, open_outlet
from megarl.reshard.checksum import Checksums
from megarl.reshard.fanout import Fanout
from megarl.reshard.packer import Packer
from megarl.reshard.plan import TransferPlan, plan_policy_rank
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
    listen,
    serve_store,
    waited_for,
)
from megarl.reshard.staging import node_name
from megarl.reshard.stored import StoredPacker, StoredWeights
from megarl.reshard.tally import PublishReport, Tally
from megarl.reshard.topology import Topology
from megarl.reshard.wire import Wire, local_address

_GRACE_S = 2.0  # rank 0 asks last: a worker that sees a peer fail knows more about it


def serve_weights(host: str, *, timeout_s: float) -> tuple[dist.TCPStore, WeightEndpoint]:
    """Policy rank 0: open the store of a new session. TransportError when the address cannot be bound."""
    listener = listen(host, 0)
    port = listener.getsockname()[1]
    store = serve_store(listener, timeout_s)
    return store, WeightEndpoint(host=host, port=port, token=new_token(), secret=new_secret(), timeout_s=timeout_s)


class WeightSender:
    """See the module. Build it on every policy rank at once, while the engines connect."""

    def __init__(
        self,
        endpoint: WeightEndpoint,
        offer: Offer,
        parameters: Mapping[str, Tensor] | StoredWeights,
        *,
        rank: int,
        store: dist.Store | None = None,
    ) -> None:
        """Meet all peers and plan.

        parameters: this rank's, by `regions.parameter_key`; or a checkpoint's tensors, from which the only rank of a
        grid of one publishes. store: rank 0's own, from `serve_weights`.

        Raises:
            TransportError: peers did not come, or engines do not fit each other.
            LayoutError: the engines want what the policy does not hold.
        """
        self._rank, self._offer, self._timeout_s = rank, offer, endpoint.timeout_s
        self._serial = 0
        self._seal = endpoint.seal()
        checksums = Checksums(self._seal)
        sealed = endpoint.seal_store(store or connect_store(endpoint.host, endpoint.port, endpoint.timeout_s))
        signals = Signals(sealed, timeout_s=endpoint.timeout_s)
        self._signals: Signals | None = signals
        facts = channel_facts(offer, torch.device(offer.device))
        with joining(signals, f"policy rank {rank}"):
            self._topology, self.plan = self._agree(signals, facts.fanout)
            self._packer = _open_packer(parameters, self.plan, checksums)
            self._outlet = open_outlet(offer, self.plan, parameters, self._topology, signals)
            self._wire = Wire(
                sealed,
                address=local_address(endpoint.host, endpoint.port),
                peer=rank,
                num_peers=self._topology.num_peers,
                timeout_s=endpoint.timeout_s,
                device=facts.wire_device,
                describe_peer=self._topology.describe_peer,
            )

    def _agree(self, signals: Signals, fanout: Fanout | None) -> tuple[Topology, TransferPlan]:
        offer = self._offer
        signals.put(f"policy-{self._rank}", node_name())
        if self._rank == 0:
            signals.put("offer", offer.as_json())
        wanted, digests = await_wanted(signals, offer)
        if self._rank == 0:
            announce_nodes(signals, offer, digests)
        request = await_request(signals, offer, wanted, fanout=fanout)
        return request.topology, plan_policy_rank(request, offer.layout.held_by(self._rank), rank=self._rank)

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
        publication = Publication(
            version=version, serial=self._serial, packer=self._packer, seal=self._seal, wire=self._wire, tally=tally
        )
        for place, messages in groupby(self.plan.sends, key=lambda message: message.place):
            self._outlet.send(place, [message.receiver for message in messages], publication)
        self._outlet.land(tally)

    def _conclude(self) -> None:
        """Rank 0 hears every worker and gives the verdict; the others wait for it."""
        if self._rank == 0:
            first = self._topology.grid.world_size
            workers = set(range(first, first + self._topology.num_workers))
            self._await("taken", workers, "take and check everything", grace_s=_GRACE_S)
            self._live.put(f"{self._transfer}/verdict", True)
            self._drop_older()
            return
        try:
            self._live.get([f"{self._transfer}/verdict"], transfer=self._transfer, grace_s=2 * _GRACE_S)
        except SignalTimeout:
            raise waited_for(0, "policy rank 0 gave no verdict within the timeout") from None

    @property
    def _transfer(self) -> str:
        return _name_transfer(self._serial)

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
        older = _name_transfer(self._serial - 1)
        if self._serial > 1:
            numbers = range(self._topology.num_workers)
            workers = [f"{older}/{message}-{worker}" for message in ("ready", "taken") for worker in numbers]
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
        self._outlet.close()


def call_off(endpoint: WeightEndpoint, reason: str) -> None:
    """End a session in which a single version is published, from another thread: whoever joins it, or waits for a
    peer's word, is told `reason` instead. Safe when it is over, as long as its store is served here."""
    store = endpoint.seal_store(connect_store(endpoint.host, endpoint.port, endpoint.timeout_s))
    signals = Signals(store, timeout_s=endpoint.timeout_s)
    for transfer in (SESSION, _name_transfer(1)):
        signals.fail(transfer, reason)


def _name_transfer(serial: int) -> str:
    return f"publication-{serial}"


def _open_packer(parameters: Mapping[str, Tensor] | StoredWeights, plan: TransferPlan, checksums: Checksums) -> Packs:
    if isinstance(parameters, StoredWeights):
        return StoredPacker(parameters, plan.blocks, checksums)
    return Packer(parameters, plan.blocks, checksums)
