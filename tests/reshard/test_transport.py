"""Both transports between real processes, and every way a transfer can fail."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megarl.reshard import shared_memory
from megarl.reshard.transport import TransportError, WeightEndpoint, WeightReceiver, WeightSender

TRANSPORTS = ("shared_memory", "broadcast")
BUCKET_BYTES = 4096
TOKENS: set[str] = set()
"""Of this test's senders: other runs on the machine have files of their own."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["megarl.reshard.transport"])


def weights(seed: int) -> dict[str, Tensor]:
    """Mixed dtypes, an empty tensor, a scalar, and one tensor larger than a bucket in each slot's turn."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{i}": torch.randn(7 * i + 1, 5, generator=generator) for i in range(30)}
    tensors |= {f"huge.{i}": torch.randn(BUCKET_BYTES // 2 + 100 * i, generator=generator) for i in range(3)}
    tensors["half"] = torch.randn(33, generator=generator).bfloat16()
    tensors["transposed"] = torch.randn(6, 11, generator=generator).t()
    tensors["scalar"] = torch.tensor(1.5 + seed)
    tensors["empty"] = torch.empty(0, 4)
    return tensors


def shm_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("megarl-weights-*")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    TOKENS.clear()
    yield
    assert not [name for name in shm_files() if name.split("-")[2] in TOKENS]


@contextmanager
def sender_for(transport: str, *, receivers: int = 1, timeout_s: float = 30.0) -> Iterator[WeightSender]:
    sender = WeightSender(transport=transport, receivers=receivers, bucket_bytes=BUCKET_BYTES, timeout_s=timeout_s)
    TOKENS.add(sender.endpoint.token)
    try:
        yield sender
    finally:
        sender.close()


def receive_versions(endpoint: dict[str, Any], rank: int, versions: list[int], results: Any) -> None:
    receiver = WeightReceiver(WeightEndpoint(**endpoint), rank=rank)
    for version in versions:
        # Everything is kept until the last tensor has come: what was yielded first must not have been overwritten.
        held = list(receiver.receive(version))
        results.put((rank, version, [(name, as_bytes(tensor)) for name, tensor in held]))
    receiver.close()


def as_bytes(tensor: Tensor) -> bytes:
    tensor = tensor.contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_processes_get_every_version_bit_for_bit(transport: str) -> None:
    with sender_for(transport, receivers=2) as sender:
        results = CONTEXT.Queue()
        arguments = [(sender.endpoint.as_dict(), rank, [1, 2, 2], results) for rank in range(2)]
        processes = [CONTEXT.Process(target=receive_versions, args=each) for each in arguments]
        for process in processes:
            process.start()
        reports = [sender.send(version, weights(version).items()) for version in (1, 2, 2)]
        got = [results.get(timeout=60) for _ in range(6)]
        for process in processes:
            process.join(timeout=30)
            assert process.exitcode == 0
    for rank, version, tensors in got:
        assert rank in (0, 1)
        assert tensors == [(name, as_bytes(tensor)) for name, tensor in weights(version).items()]
    expected_bytes = sum(tensor.nbytes for tensor in weights(1).values())
    assert [(report.version, report.tensors, report.bytes) for report in reports] == [
        (version, len(weights(1)), expected_bytes) for version in (1, 2, 2)
    ]
    assert reports[1].checksums == reports[2].checksums != reports[0].checksums


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_store_keeps_nothing_of_a_finished_version(transport: str) -> None:
    with sender_for(transport) as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        counts = []
        for version in (1, 2, 3):
            received = pool.submit(lambda version=version: list(receiver.receive(version)))
            sender.send(version, weights(version).items())
            received.result(timeout=30)
            counts.append(sender._signals.store.num_keys())
        assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_changed_bytes_are_named_on_both_sides(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with sender_for(transport) as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        sending = pool.submit(sender.send, 7, [("good", torch.ones(3)), ("bad", torch.ones(20))])
        receiver._join()
        take = receiver._carrier.take

        def take_and_flip(where: dict[str, Any], num_bytes: int) -> Tensor:
            buffer = take(where, num_bytes)
            buffer[-1] ^= 1
            return buffer

        monkeypatch.setattr(receiver._carrier, "take", take_and_flip)
        with pytest.raises(TransportError, match=r"version 7 at receiver rank 0: tensor bad arrived changed"):
            list(receiver.receive(7))
        with pytest.raises(TransportError, match=r"version 7: receiver rank 0 failed: tensor bad arrived changed"):
            sending.result(timeout=30)


def test_sender_compares_what_receivers_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that misses the difference itself still reports its checksum, and the sender sees it."""
    with sender_for("shared_memory") as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        put = receiver._signals.put

        def put_wrong(key: str, message: Any) -> None:
            put(key, [message[0] ^ 1, *message[1:]] if "/done-" in key else message)

        monkeypatch.setattr(receiver._signals, "put", put_wrong)
        received = pool.submit(lambda: list(receiver.receive(1)))
        with pytest.raises(TransportError, match=r"version 1: tensor first arrived changed at receiver rank 0"):
            sender.send(1, [("first", torch.ones(3))])
        with pytest.raises(TransportError, match="the sender failed"):
            received.result(timeout=30)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stalled_sender_names_version_bucket_and_last_tensor(transport: str) -> None:
    with sender_for(transport, timeout_s=1.0) as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        release = threading.Event()

        def stalling() -> Iterator[tuple[str, Tensor]]:
            yield "first", torch.ones(BUCKET_BYTES)
            yield "second", torch.ones(BUCKET_BYTES)
            release.wait(30)
            yield "third", torch.ones(BUCKET_BYTES)

        sending = pool.submit(sender.send, 3, stalling())
        with pytest.raises(
            TransportError, match=r"version 3 at receiver rank 0: .*policy rank 0.* no bucket 1 within 1 s"
        ):
            list(receiver.receive(3))
        release.set()
        with pytest.raises(TransportError, match=r"version 3: receiver rank 0 failed"):
            sending.result(timeout=30)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stalled_receiver_is_named_with_the_tensors_it_did_not_take(transport: str) -> None:
    with sender_for(transport, receivers=2, timeout_s=2.0) as sender, ThreadPoolExecutor(2) as pool:
        healthy, stalled = (WeightReceiver(sender.endpoint, rank=rank) for rank in range(2))
        received = pool.submit(lambda: list(healthy.receive(4)))
        if transport == "broadcast":
            pool.submit(stalled._join)  # it joined the group, and then never asks for a bucket
        with pytest.raises(TransportError, match=r"version 4: receiver ranks \[1\] of 2 .* 0 \(a \.\. b\)"):
            sender.send(4, [("a", torch.ones(4)), ("b", torch.ones(4))])
        with pytest.raises(TransportError, match=r"receiver rank 0: the sender failed: .*receiver ranks \[1\]"):
            received.result(timeout=30)


def die_after_first(endpoint: dict[str, Any]) -> None:
    next(WeightReceiver(WeightEndpoint(**endpoint), rank=0).receive(1))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_receiver_is_named(transport: str) -> None:
    with sender_for(transport, timeout_s=6.0) as sender:
        process = CONTEXT.Process(target=die_after_first, args=(sender.endpoint.as_dict(),))
        process.start()
        with pytest.raises(TransportError, match=r"version 1: .*(receiver ranks \[0\]|lost its peers)"):
            sender.send(1, weights(0).items())
        process.join(timeout=30)


def send_first_and_die(endpoint: Any) -> None:
    sender = WeightSender(transport="shared_memory", receivers=1, bucket_bytes=BUCKET_BYTES, timeout_s=30.0)
    endpoint.put(sender.endpoint.as_dict())

    def dying() -> Iterator[tuple[str, Tensor]]:
        yield "first", torch.ones(BUCKET_BYTES)
        yield "second", torch.ones(BUCKET_BYTES)
        os.kill(os.getpid(), signal.SIGKILL)

    sender.send(2, dying())


def test_killed_sender_is_noticed_before_the_timeout() -> None:
    queue = CONTEXT.Queue()
    process = CONTEXT.Process(target=send_first_and_die, args=(queue,))
    process.start()
    endpoint = WeightEndpoint(**queue.get(timeout=60))
    TOKENS.add(endpoint.token)
    receiver = WeightReceiver(endpoint, rank=0)
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"version 2 at receiver rank 0: the sender \(policy rank 0\) is gone"):
        list(receiver.receive(2))
    assert time.monotonic() - started < 15
    process.join(timeout=30)
    shared_memory.remove_stale_files()  # a killed sender's file for an oversized tensor waits for the next sender


def test_failed_installation_reaches_the_sender() -> None:
    with sender_for("shared_memory") as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        sending = pool.submit(sender.send, 5, weights(0).items())
        next(receiver.receive(5))
        receiver.abort(5, "ValueError: no such parameter")
        with pytest.raises(TransportError, match="version 5: receiver rank 0 failed: ValueError: no such parameter"):
            sending.result(timeout=30)


def test_failed_gathering_reaches_the_receiver() -> None:
    def failing() -> Iterator[tuple[str, Tensor]]:
        yield "first", torch.ones(3)
        raise RuntimeError("shard of layer 3 is missing")

    with sender_for("shared_memory") as sender, ThreadPoolExecutor(1) as pool:
        receiver = WeightReceiver(sender.endpoint, rank=0)
        received = pool.submit(lambda: list(receiver.receive(6)))
        with pytest.raises(RuntimeError, match="shard of layer 3 is missing"):
            sender.send(6, failing())
        with pytest.raises(TransportError, match=r"version 6 at receiver rank 0: the sender failed.*shard of layer 3"):
            received.result(timeout=30)


def test_missing_receivers_are_named() -> None:
    with sender_for("broadcast", receivers=3, timeout_s=0.5) as sender:
        WeightReceiver(sender.endpoint, rank=1)
        with pytest.raises(TransportError, match=r"receiver ranks \[0, 2\] of 3 did not connect"):
            sender.send(1, [("a", torch.ones(1))])


def test_receiver_that_never_adopts_is_named() -> None:
    with sender_for("broadcast", timeout_s=0.5) as sender:
        WeightReceiver(sender.endpoint, rank=0)
        with pytest.raises(TransportError, match=r"version 1: receiver ranks \[0\] of 1 did not join the broadcast"):
            sender.send(1, [("a", torch.ones(1))])


def test_rank_can_connect_once() -> None:
    with sender_for("shared_memory", receivers=2) as sender:
        WeightReceiver(sender.endpoint, rank=1)
        with pytest.raises(TransportError, match="rank 1 is connected already"):
            WeightReceiver(sender.endpoint, rank=1)
        with pytest.raises(ValueError, match=r"rank 2 is not in 0 \.\. 1"):
            WeightReceiver(sender.endpoint, rank=2)


def test_port_in_use_says_so() -> None:
    with (
        sender_for("broadcast") as sender,
        pytest.raises(TransportError, match=r"cannot listen on 127\..*in use"),
    ):
        WeightSender(transport="broadcast", receivers=1, bucket_bytes=1, timeout_s=1.0, port=sender.endpoint.port)


def test_other_node_is_told_to_use_broadcast() -> None:
    with sender_for("shared_memory") as sender:
        for slot in sender._carrier._slots:
            slot.unlink()  # what a receiver on another node sees
        with pytest.raises(TransportError, match='transport = "broadcast"'):
            WeightReceiver(sender.endpoint, rank=0)


def test_too_small_shared_memory_fails_at_start() -> None:
    with pytest.raises(TransportError, match=r"no room for a bucket .* rollout.publish.bucket_mib"):
        WeightSender(transport="shared_memory", receivers=1, bucket_bytes=1 << 50, timeout_s=1.0)


def hold_sender(ready: Any) -> None:
    sender = WeightSender(transport="shared_memory", receivers=1, bucket_bytes=BUCKET_BYTES, timeout_s=1.0)
    ready.put(sender.endpoint.token)
    signal.pause()


def test_files_of_a_killed_sender_are_removed_by_the_next_and_live_ones_are_not() -> None:
    ready = CONTEXT.Queue()
    process = CONTEXT.Process(target=hold_sender, args=(ready,))
    process.start()
    token = ready.get(timeout=60)
    files = {name for name in shm_files() if token in name}
    assert len(files) == shared_memory.NUM_SLOTS
    shared_memory.remove_stale_files()
    assert files <= shm_files()
    os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=30)
    shared_memory.remove_stale_files()
    assert not files & shm_files()
