"""Someone who is no peer writes to the store of a running session, or knocks without its secret.

What he wrote is refused by the name of its key, nothing is installed, and the workers keep the version they have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch.distributed as dist

from megarl.reshard.receiver import NOT_INSTALLED
from megarl.reshard.seal import SealedStore, new_secret
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.signals import connect_store
from tests.reshard.fault_processes import Processes
from tests.reshard.publication import Peer, Setting

SETTING = Setting(tensor=2, engines=2, bucket_bytes=512, timeout_s=20.0)
POLICY_RANKS, WORKERS = range(2), range(2, 4)
PEERS = range(4)
REFUSED = "does not carry this session's seal"


@contextmanager
def session() -> Iterator[tuple[Processes, int, dist.Store]]:
    """A session in which version 2 has been published, the messages a worker receives of one, and what a stranger can
    make of its store."""
    with Processes(SETTING.num_peers, Peer) as processes:
        endpoint = serve(processes)
        plans = processes.call(PEERS, "join", SETTING, endpoint)
        processes.call(PEERS, "publish", 2)
        num_messages = sum(sent for _, _, sent in plans) // len(WORKERS)
        yield processes, num_messages, as_stranger(endpoint)


def serve(processes: Processes) -> WeightEndpoint:
    endpoint: WeightEndpoint
    (endpoint,) = processes.call([0], "serve", SETTING.timeout_s)
    return endpoint


def as_stranger(endpoint: WeightEndpoint) -> dist.Store:
    """The token, which begins every key, is no secret: the store lists its keys."""
    store = connect_store(endpoint.host, endpoint.port, endpoint.timeout_s)
    assert f"{endpoint.token}/offer" in store.list_keys()
    return dist.PrefixStore(endpoint.token, store)


def plant_other_secret(store: dist.Store, key: str) -> None:
    forged = dist.HashStore()
    SealedStore(forged, secret=new_secret(), session="x").set(key, "true")
    store.set(key, bytes(forged.get(f"x/{key}")))  # type: ignore[arg-type]


def earlier(store: dist.Store) -> bytes:
    return bytes(store.get("publication-1/ready-0"))


PLANTS: dict[str, Callable[[dist.Store, str], None]] = {
    "forged": lambda store, key: store.set(key, "true"),
    "sealed with another secret": plant_other_secret,
    "replayed from the publication before": lambda store, key: store.set(key, earlier(store)),  # type: ignore[arg-type]
    "cut short": lambda store, key: store.set(key, earlier(store)[:20]),  # type: ignore[arg-type]
    "as large as a store takes": lambda store, key: store.set(key, "[" * (8 << 20)),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_message_is_refused(name: str) -> None:
    """Workers that are said to be ready before they are; the policy reads it and tells all why it stops."""
    with session() as (processes, _, store):
        for worker in range(len(WORKERS)):
            PLANTS[name](store, f"publication-2/ready-{worker}")
        for peer in POLICY_RANKS:
            processes.order(peer, "publish", 3)
        answers = processes.collect(POLICY_RANKS)
        for peer in WORKERS:
            processes.order(peer, "publish", 3)
        answers |= processes.collect(WORKERS)
        for peer, answer in answers.items():
            assert answer.error.startswith("TransportError: ")
            assert "weights version 3" in answer.error
            assert "the message publication-2/ready-0 (" in answer.error
            assert REFUSED in answer.error
            assert (NOT_INSTALLED in answer.error) == (peer in WORKERS)
        assert all(processes.call(WORKERS, "holds", 2))
        processes.call(reversed(PEERS), "leave")  # a new session is not touched by what lies in the old one
        processes.call(PEERS, "join", SETTING, serve(processes))
        processes.call(PEERS, "publish", 4)
        assert all(processes.call(WORKERS, "holds", 4))


def test_a_forged_verdict_installs_nothing() -> None:
    """It says "install" while one worker has not checked its last message."""
    with session() as (processes, num_messages, store):
        processes.call([3], "arm", "stop", num_messages)
        store.set("publication-2/verdict", "true")
        for peer in PEERS:
            processes.order(peer, "publish", 3)
        answers = processes.collect([0, 1, 2], timeout_s=3 * SETTING.timeout_s)
        for answer in answers.values():
            assert answer.error.startswith("TransportError: ")
        for peer in (1, 2):
            assert f"the message publication-2/verdict (4 bytes) {REFUSED}" in answers[peer].error
        assert NOT_INSTALLED in answers[2].error
        assert processes.call([2], "holds", 2) == [True]


def test_an_offer_of_an_earlier_session_is_refused() -> None:
    """The same key, truly sealed by this policy, a session ago."""
    with session() as (processes, _, store):
        old = bytes(store.get("offer"))
        processes.call(reversed(PEERS), "leave")
        endpoint = serve(processes)
        connect_store(endpoint.host, endpoint.port, 5.0).set(f"{endpoint.token}/offer", old)  # type: ignore[arg-type]
        for peer in WORKERS:
            processes.order(peer, "join", SETTING, endpoint)
        for answer in processes.collect(WORKERS).values():
            assert answer.error.startswith(f"ForgedMessage: the message offer ({len(old)} bytes) {REFUSED}")


def test_a_worker_without_the_secret_is_not_let_in() -> None:
    """Nor does its knocking disturb those who belong to the session."""
    with Processes(SETTING.num_peers + 1, Peer) as processes:
        endpoint = serve(processes)
        for peer in POLICY_RANKS:
            processes.order(peer, "join", SETTING, endpoint)
        processes.order(4, "join_as", SETTING, replace(endpoint, secret=new_secret()), 2)
        stranger = processes.collect([4])[4]
        assert stranger.error.startswith("ForgedMessage: the message offer (")
        for peer in WORKERS:
            processes.order(peer, "join", SETTING, endpoint)
        assert not any(answer.error for answer in processes.collect(PEERS).values())
        processes.call(PEERS, "publish", 2)
        assert all(processes.call(WORKERS, "holds", 2))
