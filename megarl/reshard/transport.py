"""Weights from one sender (policy rank 0) to N receivers (every worker of every vLLM engine), in buckets.

The protocol of one version v, bucket i; messages go over the sender's TCPStore, bytes by the carrier:

    sender                                  every receiver r
    pack bucket i into slot i % 2
    v/bucket-i {where, bytes, entries} -->  (collective carriers: v/ready-i-r, v/go-i, the broadcast)
                                            copy the bucket out, compute each tensor's checksum
                                       <--  v/done-i-r [checksums]           the slot is free again
    v/bucket-n {"end"}                 -->  yield has handed out the last tensor
                                       <--  v/end-r

Invariants: a tensor a receiver yields owns its memory and equals the source bit for bit, or an error names it;
packing bucket i + 1 overlaps the installing of bucket i; every wait is bounded by `timeout_s` and its error names
version, bucket, tensors and peers; a failure on one side is an error with the same text on the other.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.reshard.broadcast import Broadcaster
from megarl.reshard.bucket import Bucket, TensorEntry, pack_buckets, unpack_tensor
from megarl.reshard.checksum import compute_checksum
from megarl.reshard.shared_memory import NUM_SLOTS, SharedMemoryReceiver, SharedMemorySender
from megarl.reshard.signals import PeerFailed, Signals, SignalTimeout, TransportError, connect_store, serve_store

__all__ = ["PublishReport", "TransportError", "WeightEndpoint", "WeightReceiver", "WeightSender"]

_GRACE_S = 1.0  # the sender times out first: it knows which receiver is missing

Transport = Literal["shared_memory", "broadcast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEndpoint:
    """Where receivers find the sender, and what both must agree on. Crosses processes as a plain dict."""

    host: str
    port: int
    token: str
    """Names this sender's messages and files; a new one for every sender."""
    transport: Transport
    receivers: int
    """Workers that will receive, over all engines."""
    timeout_s: float
    device: Literal["cpu", "cuda"]
    """Where broadcast buckets live (gloo or NCCL)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What one publication moved."""

    version: int
    tensors: int
    bytes: int
    buckets: int
    seconds: float
    """From the first tensor asked for to every receiver having taken the last."""
    checksums: dict[str, int]
    """Per tensor, confirmed by every receiver."""


def _transfer(version: int) -> str:
    return f"version-{version}"


class WeightSender:
    """The trainer's end. Build it, hand `endpoint` to the receivers, then `send` any number of versions."""

    def __init__(
        self,
        *,
        transport: Transport,
        receivers: int,
        bucket_bytes: int,
        timeout_s: float,
        host: str = "127.0.0.1",
        port: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Listen on host:port (0: any free port) and, for shared memory, reserve two buckets in /dev/shm.

        Raises:
            TransportError: the address cannot be bound, or /dev/shm is too small.
        """
        if receivers < 1 or bucket_bytes < 1:
            raise ValueError(f"receivers {receivers} and bucket_bytes {bucket_bytes} must both be at least 1")
        self._device = torch.device(device)
        self._bucket_bytes = bucket_bytes
        self._joined = False
        store, bound_port = serve_store(host, port, timeout_s)
        self.endpoint = WeightEndpoint(
            host=host,
            port=bound_port,
            token=secrets.token_hex(8),
            transport=transport,
            receivers=receivers,
            timeout_s=timeout_s,
            device="cuda" if self._device.type == "cuda" else "cpu",
        )
        self._signals = Signals(store, token=self.endpoint.token, timeout_s=timeout_s)
        self._carrier: SharedMemorySender | Broadcaster | None = None
        slots: list[dict[str, Any]] = []
        if transport == "shared_memory":
            self._carrier = SharedMemorySender(token=self.endpoint.token, bucket_bytes=bucket_bytes)
            slots = [self._carrier.where(slot) for slot in range(NUM_SLOTS)]
        self._signals.put("sender", {"slots": slots, "host": socket.gethostname(), "pid": os.getpid()})

    def connect(self) -> None:
        """Wait until every receiver has connected; the first `send` does it too.

        From here on shared memory has no name left: it goes with the processes, however they end.

        Raises:
            TransportError: names the receiver ranks that did not come within the timeout.
        """
        endpoint = self.endpoint
        self._get_all(
            "receiver",
            f"connect to the weight sender at {endpoint.host}:{endpoint.port} (all vLLM engines must be started and "
            "connected before the first publication)",
        )
        if self._carrier is not None:
            self._carrier.connected()

    def _join(self, transfer: str) -> None:
        """Before the first transfer: every receiver is connected, and a broadcast's group is formed."""
        if self._joined:
            return
        self.connect()
        if self._carrier is None:
            self._get_all("joining", "join the broadcast (adopt_weights must run while send does)", transfer=transfer)
            self._carrier = Broadcaster(
                self._signals.store,
                host=self.endpoint.host,
                port=self.endpoint.port,
                rank=0,
                size=1 + self.endpoint.receivers,
                timeout_s=self.endpoint.timeout_s,
                device=self._device,
            )
        self._carrier.connected()
        self._joined = True

    def send(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> PublishReport:
        """Send every tensor to every receiver and return when all have taken all, checksums equal.

        `tensors` is consumed one at a time (it may gather shards as it goes); two buckets bound the memory.

        Raises:
            TransportError: a receiver failed, stalled or got changed bytes; names version, tensor and rank.
        """
        started = time.perf_counter()
        transfer = _transfer(version)
        with self._failing(transfer, version):
            self._join(transfer)
            assert self._carrier is not None
            pending: dict[int, Bucket] = {}
            checksums: dict[str, int] = {}

            def buffer_for(bucket_index: int, least_bytes: int) -> Tensor:
                if bucket_index >= NUM_SLOTS:
                    self._settle(transfer, pending.pop(bucket_index - NUM_SLOTS))
                return self._carrier.buffer(bucket_index % NUM_SLOTS, least_bytes)  # type: ignore[union-attr]

            num_bytes = num_buckets = 0
            for bucket in pack_buckets(tensors, self._bucket_bytes, buffer_for):
                self._post(transfer, bucket)
                pending[bucket.index] = bucket
                checksums |= {entry.name: entry.checksum for entry in bucket.entries}
                num_bytes += sum(entry.num_bytes for entry in bucket.entries)
                num_buckets += 1
            if not checksums:
                raise ValueError("nothing to publish: the iterable of tensors is empty")
            for index in sorted(pending):
                self._settle(transfer, pending[index])
            self._end(transfer, num_buckets)
        return PublishReport(
            version=version,
            tensors=len(checksums),
            bytes=num_bytes,
            buckets=num_buckets,
            seconds=time.perf_counter() - started,
            checksums=checksums,
        )

    def _keys(self, transfer: str, message: str) -> list[str]:
        return [f"{transfer}/{message}-{rank}" for rank in range(self.endpoint.receivers)]

    def _get_all(self, message: str, verb: str, *, transfer: str | None = None) -> list[Any]:
        """The message of every receiver, or a TransportError naming the ranks that did not `verb`."""
        keys = [f"{message}-{rank}" for rank in range(self.endpoint.receivers)]
        try:
            return self._signals.get(keys, transfer=transfer)
        except SignalTimeout as error:
            ranks = sorted(int(key.rsplit("-", 1)[1]) for key in error.missing)
            raise TransportError(
                f"receiver ranks {ranks} of {self.endpoint.receivers} did not {verb} "
                f"within {self.endpoint.timeout_s:g} s"
            ) from None

    def _get(self, transfer: str, message: str, verb: str) -> list[Any]:
        return self._get_all(f"{transfer}/{message}", verb, transfer=transfer)

    def _post(self, transfer: str, bucket: Bucket) -> None:
        assert self._carrier is not None
        slot = bucket.index % NUM_SLOTS
        header = {
            "where": self._carrier.where(slot),
            "bytes": bucket.num_bytes,
            "entries": [entry.as_json() for entry in bucket.entries],
        }
        self._signals.put(f"{transfer}/bucket-{bucket.index}", header)
        if self._carrier.collective:
            self._get(transfer, f"ready-{bucket.index}", f"become ready for bucket {bucket.index} ({bucket.names})")
            self._signals.put(f"{transfer}/go-{bucket.index}", True)
            self._carrier.push(slot, bucket.num_bytes)

    def _settle(self, transfer: str, bucket: Bucket) -> None:
        """Wait until every receiver has the bucket, and compare the checksums it computed."""
        assert self._carrier is not None
        acknowledged = self._get(transfer, f"done-{bucket.index}", f"take bucket {bucket.index} ({bucket.names})")
        self._carrier.settle(bucket.index % NUM_SLOTS)
        for rank, checksums in enumerate(acknowledged):
            for entry, checksum in zip(bucket.entries, checksums, strict=True):
                if checksum != entry.checksum:
                    raise TransportError(_mismatch_text(entry, rank, checksum))
        done = [f"{transfer}/bucket-{bucket.index}", *self._keys(transfer, f"done-{bucket.index}")]
        if self._carrier.collective:
            done += [f"{transfer}/go-{bucket.index}", *self._keys(transfer, f"ready-{bucket.index}")]
        self._signals.drop(done)

    def _end(self, transfer: str, num_buckets: int) -> None:
        self._signals.put(f"{transfer}/bucket-{num_buckets}", {"end": True})
        self._get(transfer, "end", "finish installing the last bucket")
        self._signals.drop([f"{transfer}/bucket-{num_buckets}", *self._keys(transfer, "end")])

    @contextmanager
    def _failing(self, transfer: str, version: int) -> Iterator[None]:
        """Tell the receivers why this side stopped, and put the version into the text."""
        try:
            yield
        except PeerFailed as error:
            raise TransportError(f"publishing weights version {version}: {error}") from None
        except BaseException as error:
            self._signals.fail(transfer, f"the sender failed: {type(error).__name__}: {error}")
            if isinstance(error, TransportError):
                raise TransportError(f"publishing weights version {version}: {error}") from error
            raise

    def close(self) -> None:
        """Release buffers, files and, with the last reference, the port. Idempotent."""
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
        self._joined = False


def _mismatch_text(entry: TensorEntry, rank: int, found: int) -> str:
    return (
        f"tensor {entry.name} arrived changed at receiver rank {rank}: checksum sent {entry.checksum:016x}, "
        f"received {found:016x} ({entry.num_bytes} bytes of {entry.dtype})"
    )


class WeightReceiver:
    """One worker's end."""

    def __init__(self, endpoint: WeightEndpoint, *, rank: int, device: torch.device | str = "cpu") -> None:
        """Connect to the sender as receiver `rank`, 0 <= rank < endpoint.receivers.

        Raises:
            TransportError: the sender cannot be reached, its shared memory is not on this node, or `rank` is taken.
        """
        if not 0 <= rank < endpoint.receivers:
            raise ValueError(f"receiver rank {rank} is not in 0 .. {endpoint.receivers - 1}, what the sender expects")
        self.endpoint, self.rank = endpoint, rank
        self._device = torch.device(device)
        store = connect_store(endpoint.host, endpoint.port, endpoint.timeout_s)
        self._signals = Signals(store, token=endpoint.token, timeout_s=endpoint.timeout_s + _GRACE_S)
        self._carrier: SharedMemoryReceiver | Broadcaster | None = None
        try:
            (sender,) = self._signals.get(["sender"])
        except SignalTimeout:
            raise TransportError(
                f"{endpoint.host}:{endpoint.port} is not the weight sender this receiver was told of (another run's?)"
            ) from None
        if endpoint.transport == "shared_memory":
            self._carrier = SharedMemoryReceiver(slots=sender["slots"], device=self._device)
        if not self._signals.claim(f"claimed-{rank}"):
            raise TransportError(
                f"receiver rank {rank} is connected already; a restarted engine needs a new WeightSender and endpoint"
            )
        self._signals.put(f"receiver-{rank}", {"host": socket.gethostname(), "pid": os.getpid()})

    def _join(self) -> None:
        if self._carrier is None:
            self._signals.put(f"joining-{self.rank}", True)
            self._carrier = Broadcaster(
                self._signals.store,
                host=self.endpoint.host,
                port=self.endpoint.port,
                rank=1 + self.rank,
                size=1 + self.endpoint.receivers,
                timeout_s=self.endpoint.timeout_s,
                device=torch.device(self._device if self.endpoint.device == "cuda" else "cpu"),
            )

    def receive(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """Yield every (name, tensor) of `version`, in the sender's order, on the receiver's device.

        A tensor keeps its bucket's memory alive and is never overwritten: vLLM's layer-wise loading holds on to tensors
        until their layer is complete, which may be several buckets later. Call `abort` when installing one fails.

        Raises:
            TransportError: the sender failed or stalled, or a checksum differs; names version, tensor and rank.
        """
        transfer, last = _transfer(version), "nothing yet"
        prefix = f"receiving weights version {version} at receiver rank {self.rank}"
        index = 0
        try:
            self._join()
            while "end" not in (header := self._header(transfer, index, last)):
                entries = [TensorEntry.from_json(fields) for fields in header["entries"]]
                buffer = self._take(transfer, index, header)
                last = f"bucket {index} up to {entries[-1].name}"
                yield from self._verified(transfer, index, buffer, entries)
                index += 1
            self._signals.put(f"{transfer}/end-{self.rank}", True)
        except PeerFailed as error:
            raise TransportError(f"{prefix}: {error}") from None
        except dist.DistError as error:  # its store went with it
            raise TransportError(f"{prefix}: the sender (policy rank 0) is gone; received so far: {last}") from error
        except TransportError as error:
            self._signals.fail(transfer, f"receiver rank {self.rank} failed: {error}")
            raise TransportError(f"{prefix}: {error}") from error

    def abort(self, version: int, reason: str) -> None:
        """Tell the sender and the other receivers that this one could not install `version`."""
        self._signals.fail(_transfer(version), f"receiver rank {self.rank} failed: {reason}")

    def _header(self, transfer: str, index: int, last: str) -> dict[str, Any]:
        return self._wait(transfer, f"bucket-{index}", f"sent no bucket {index}", f"received so far: {last}")

    def _wait(self, transfer: str, message: str, lacking: str, context: str) -> Any:
        """The sender's message, or a TransportError that says what it did not do."""
        try:
            return self._signals.get([f"{transfer}/{message}"], transfer=transfer)[0]
        except SignalTimeout:
            raise TransportError(
                f"the sender (policy rank 0) {lacking} within {self.endpoint.timeout_s:g} s; {context}"
            ) from None

    def _take(self, transfer: str, index: int, header: dict[str, Any]) -> Tensor:
        assert self._carrier is not None
        if self._carrier.collective:
            self._signals.put(f"{transfer}/ready-{index}-{self.rank}", True)
            self._wait(transfer, f"go-{index}", f"did not start the broadcast of bucket {index}", "waiting for it")
        return self._carrier.take(header["where"], header["bytes"])

    def _verified(
        self, transfer: str, index: int, buffer: Tensor, entries: list[TensorEntry]
    ) -> list[tuple[str, Tensor]]:
        """Unpack, compare checksums, and give the slot back before anything is installed."""
        tensors = [(entry.name, unpack_tensor(buffer, entry)) for entry in entries]
        found = [compute_checksum(tensor) for _, tensor in tensors]
        for entry, checksum in zip(entries, found, strict=True):
            if checksum != entry.checksum:
                raise TransportError(_mismatch_text(entry, self.rank, checksum))
        self._signals.put(f"{transfer}/done-{index}-{self.rank}", found)
        return tensors

    def close(self) -> None:
        """Unmap or leave the group. Idempotent."""
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
