"""An engine worker's end of a publication.

What arrives goes into staging memory, the worker's part of the weights in the order of the wire, block after block; or
it stays where the policy has it, until it is installed (mapped.py). The model is not touched until everything has come,
every checksum agrees, and policy rank 0 has said so of every worker of every engine. Until then the engine samples from
the weights it has; so it does when a publication fails.

Receiving runs in a thread of its own, beside sampling. The staging memory is the base of the next publication's
changes, so a failed publication ends the session with it.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, KeysView
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.channel import Announced, Delivery, Held
from megarl.reshard.channels import channel_facts, open_inlet
from megarl.reshard.checksum import Checksums
from megarl.reshard.fanout import Fanout
from megarl.reshard.message import (
    DENSE,
    Envelope,
    Header,
    compare_checksums,
    header_room,
    make_header,
    name_parts,
    read_header,
)
from megarl.reshard.pack import Part, PartsTable, compute_part_checksums
from megarl.reshard.plan import Message, Place, PlanRequest, TransferPlan, plan_engine_worker
from megarl.reshard.session import (
    Offer,
    Targets,
    WeightEndpoint,
    await_request,
    await_wanted,
    digest,
    dump_boxes,
    joining,
)
from megarl.reshard.signals import PeerFailed, Signals, SignalTimeout, TransportError, connect_store
from megarl.reshard.staging import node_name
from megarl.reshard.wire import Flight, Wire, local_address

NOT_INSTALLED = "no weight of the engine was changed"
"""In the text of every error before installing: the engine is as it was."""


@dataclass(slots=True)
class _Arrival:
    """A message on its way."""

    message: Message
    header: Header
    parts: tuple[Part, ...]
    delivery: Delivery


class WeightReceiver:
    """See the module."""

    def __init__(
        self,
        endpoint: WeightEndpoint,
        *,
        worker: int,
        record: Callable[[Offer], Targets],
        device: torch.device | str = "cpu",
    ) -> None:
        """Connect as engine worker `worker` (engine x tensor + tensor rank), describe what the model wants, and plan.

        record: what the worker's parameters want of the offered tensors. device: the model's.

        Raises:
            TransportError: the policy cannot be reached, or peers did not come.
            LayoutError: the model wants what the policy does not hold.
        """
        self._worker = worker
        self._serial = 0
        self._thread: threading.Thread | None = None
        self._error: TransportError | None = None
        self._version: int | None = None
        self._closing = False
        self.checksum_s = 0.0
        """Spent on checking the last publication."""
        self._seal = endpoint.seal()
        self._checksums = Checksums(self._seal)
        store = endpoint.seal_store(connect_store(endpoint.host, endpoint.port, endpoint.timeout_s))
        self._signals = Signals(store, timeout_s=endpoint.timeout_s)
        self.offer = self._await_offer(endpoint)
        engine, tensor_rank = divmod(worker, self.offer.tensor)
        facts = channel_facts(self.offer, torch.device(device))
        with joining(self._signals, f"engine {engine} worker {tensor_rank}"):
            request, self.plan = self._agree(record(self.offer), facts.fanout)
            self._topology = request.topology
            self._parts = PartsTable(self.plan.blocks)
            self._messages = sorted((*self.plan.receives, *self.plan.sends))
            self._inlet = open_inlet(
                self.offer, self.plan, request, self._signals, worker=worker, device=torch.device(device)
            )
            self._held = self._index_regions()
            self._wire = Wire(
                store,
                address=local_address(endpoint.host, endpoint.port),
                peer=self._topology.worker_peer(worker),
                num_peers=self._topology.num_peers,
                timeout_s=endpoint.timeout_s,
                device=facts.wire_device,
                describe_peer=self._topology.describe_peer,
            )

    def _await_offer(self, endpoint: WeightEndpoint) -> Offer:
        try:
            offer = Offer.from_json(self._signals.get(["offer"])[0])
        except SignalTimeout:
            raise TransportError(
                f"{endpoint.host}:{endpoint.port} is not the policy this engine was told of (another run's?), or its "
                "policy ranks did not join the publication"
            ) from None
        if not 0 <= self._worker < offer.engines * offer.tensor:
            raise TransportError(
                f"worker {self._worker} (engine x tensor + tensor rank) is not one of the {offer.engines} engines x "
                f"{offer.tensor} tensor ranks the policy expects; start as many engines, with that tensor size"
            )
        return offer

    def _agree(self, targets: Targets, fanout: Fanout | None) -> tuple[PlanRequest, TransferPlan]:
        signals, offer, worker = self._signals, self.offer, self._worker
        engine, tensor_rank = divmod(worker, offer.tensor)
        rows = dump_boxes(list(targets))
        if not signals.claim(f"claimed-{worker}"):
            raise TransportError(
                f"engine {engine} worker {tensor_rank} is connected already; a restarted engine needs a new session"
            )
        if engine == 0:
            signals.put(f"wanted-{tensor_rank}", rows)
        signals.put(f"worker-{worker}", {"node": node_name(), "digest": digest(rows)})
        wanted, _ = await_wanted(signals, offer)
        request = await_request(signals, offer, wanted, fanout=fanout)
        return request, plan_engine_worker(request, offer.layout.holdings(), targets, worker=worker)

    def _index_regions(self) -> dict[str, list[Held]]:
        """Parameter -> everything that goes into it."""
        held: dict[str, list[Held]] = {}
        for key, block in self.plan.blocks.items():
            for unit in block.units:
                for region in unit.regions:
                    held.setdefault(region.parameter, []).append(Held(key, unit, region))
        return held

    # receiving

    def begin(self) -> None:
        """Receive the next publication in the background. Raises TransportError when the session is over."""
        self._join_thread()
        if self._error is not None:
            raise TransportError(f"the session ended with an earlier failure ({self._error}); connect anew")
        self._serial += 1
        self._version = None
        self._signals.put(f"{self._transfer}/ready-{self._worker}", True)
        self._thread = threading.Thread(target=self._receive, name="megarl-weights", daemon=True)
        self._thread.start()

    def await_version(self, version: int) -> None:
        """Return when `version` is complete in staging memory, here and in every worker of every engine.

        Raises:
            TransportError: it did not come, came changed, or another worker says so of its part; the text ends with
                NOT_INSTALLED.
        """
        self._join_thread()
        try:
            if self._error is not None:
                raise self._error
            if self._version != version:
                raise TransportError(f"expected weights version {version}, the policy sent {self._version}")
            self._signals.get([f"{self._transfer}/verdict"], transfer=self._transfer, grace_s=1.0)
        except (TransportError, PeerFailed, SignalTimeout, dist.DistError) as error:
            what = "policy rank 0 gave no verdict within the timeout" if isinstance(error, SignalTimeout) else error
            self._error = TransportError(f"receiving weights version {version}: {what}; {NOT_INSTALLED}")
            raise self._error from None

    def _join_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    @property
    def _transfer(self) -> str:
        return f"publication-{self._serial}"

    def _receive(self) -> None:
        try:
            self.checksum_s = 0.0
            self._take_all()
            self._signals.put(f"{self._transfer}/taken-{self._worker}", True)
        except BaseException as error:  # whoever asks for the version is told
            if self._closing:  # the engine ends; if that is a failure, it is not this worker's
                self._error = TransportError("the connection was closed while weights came")
                return
            self._wire.close()
            me, name = self.plan.peer, self._topology.describe_peer(self.plan.peer)
            self._error = TransportError(self._signals.tell(self._transfer, error, peer=me, name=name))

    def _take_all(self) -> None:
        """All messages in the order of all peers: the next one travels while the last is checked."""
        to_hand_on = Counter(message.place for message in self.plan.sends)
        kept: dict[Place, _Arrival] = {}
        onward: list[Flight] = []
        waiting: _Arrival | None = None
        for message in self._messages:
            place = message.place
            if message.sender == self.plan.peer:
                self._finish(waiting)
                waiting = None
                onward += self._hand_on(message, kept[place])
                to_hand_on[place] -= 1
                if not to_hand_on[place]:
                    del kept[place]
                continue
            arrival = self._start(message)
            self._finish(waiting)
            waiting = arrival
            if to_hand_on[place]:
                kept[place] = arrival
        self._finish(waiting)
        for flight in onward:
            flight.land()

    def _start(self, message: Message) -> _Arrival:
        """Hear of the message and let its payload come."""
        parts = self._parts.of(message.place)
        words = header_room(len(parts), self._wire.device)
        self._wire.receive(words, message.sender, what=name_parts(parts)).land()
        header = read_header(words, Envelope(self._seal, self._serial, message.place))
        self._version = header.version if self._version is None else self._version
        if header.version != self._version:
            raise TransportError(f"messages of versions {self._version} and {header.version} came together")
        num_bytes = message.num_elements * self.plan.itemsize
        if not (header.num_bytes == num_bytes if header.kind == DENSE else header.num_bytes <= num_bytes):
            raise TransportError(f"{name_parts(parts)}: {num_bytes} bytes expected, {header.num_bytes} announced")
        what = f"version {header.version}, {name_parts(parts)},"
        announced = Announced(header=header, message=message, what=what, wire=self._wire)
        return _Arrival(message, header, parts, self._inlet.start(announced))

    def _finish(self, arrival: _Arrival | None) -> None:
        """The message is here and its checksums agree, or TransportError."""
        if arrival is None:
            return
        elements = arrival.delivery.land()
        started = time.perf_counter()
        found = compute_part_checksums(elements, arrival.parts, self._checksums)
        self.checksum_s += time.perf_counter() - started
        sender = self._topology.describe_peer(arrival.message.sender)
        compare_checksums(arrival.parts, arrival.header.checksums, found, sender=sender)

    def _hand_on(self, message: Message, arrival: _Arrival) -> list[Flight]:
        """Pass a message to another worker as it came."""
        header = arrival.header
        what = f"version {header.version}, {name_parts(arrival.parts)},"
        envelope = Envelope(self._seal, self._serial, message.place)
        words = make_header(header, envelope).to(self._wire.device)
        tensors = (words, arrival.delivery.payload)
        return [self._wire.send(tensor, message.receiver, what=what) for tensor in tensors]

    # installing

    @property
    def parameters(self) -> KeysView[str]:
        """Names, as their recording gave them, of the parameters that take something of what comes."""
        return self._held.keys()

    def fill(self, name: str, parameter: Tensor) -> None:
        """Copy everything that came and belongs into one parameter."""
        for held in self._held[name]:
            self._inlet.install(held, parameter)

    def close(self) -> None:
        """Leave the wire and let staging memory, or the policy's, go. Idempotent."""
        self._closing = True
        self._wire.close()
        self._join_thread()
        self._inlet.close()
