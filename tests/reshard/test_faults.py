"""A peer dies, stalls or sends changed bytes in the middle of a publication.

All others hear of it in time, by name, and no engine installs anything.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from megarl.models.table import hf_tensors
from megarl.reshard.receiver import NOT_INSTALLED
from tests.reshard.fault_processes import Action, Answer, Processes
from tests.reshard.publication import Peer, Setting, connect

NETWORK = Setting(tensor=2, engines=2, bucket_bytes=512)
SHARED = replace(NETWORK, transport="shared_memory")
MAPPED = replace(NETWORK, transport="mapped")
RELAY = replace(NETWORK, engines=3, nodes="an engine", fanout="relay")
"""Engine 1 gets everything from engine 0 and hands it to engine 2."""

STALL_S = 4.0
"""The timeout where a peer stalls."""
SLACK_S = 6.0
"""Beyond it, for the policy's grace periods and a busy machine."""
AT_ONCE_S = 10.0
"""Half the timeout elsewhere: who was told, or saw a connection closed, did not wait for that."""

NAMES = ("policy rank 0", "policy rank 1", "engine 0 worker 0", "engine 1 worker 0", "engine 2 worker 0")
"""Of the peers, by number."""


def peers_of(setting: Setting) -> set[int]:
    return set(range(setting.num_peers))


def workers_of(setting: Setting) -> set[int]:
    return set(range(setting.grid.world_size, setting.num_peers))


def publish_with_fault(processes: Processes, setting: Setting, *, victim: int, action: Action) -> dict[int, Answer]:
    """Version 2 arrives, then version 3 meets the fault in its third message; answers of all who can give one."""
    peers = peers_of(setting)
    processes.call(peers, "publish", 2)
    processes.call([victim], "arm", action, 3)
    for peer in peers:
        processes.order(peer, "publish", 3)
    silent = {victim} if action == "stop" else set()
    return processes.collect(peers - silent, timeout_s=setting.timeout_s + 2 * SLACK_S)


def check_failures(answers: dict[int, Answer], setting: Setting, *, within_s: float) -> None:
    """Each raised in time, naming the version, a tensor and a peer; workers say that nothing was installed.

    A policy rank that only waited for the store knows of no tensor when that goes.
    """
    for peer, answer in answers.items():
        assert answer.error.startswith("TransportError: ")
        assert answer.seconds < within_s
        assert "weights version 3" in answer.error
        if "serves the store" not in answer.error or peer in workers_of(setting):
            assert any(tensor in answer.error for tensor in hf_tensors(setting.shape))
        assert (NOT_INSTALLED in answer.error) == (peer in workers_of(setting))
        assert any(name in answer.error for name in NAMES)


def check_blame(answers: dict[int, Answer], victim: int) -> None:
    """After a timeout the peer for which all waited in the end is named, not one that waited itself."""
    for answer in answers.values():
        assert NAMES[victim] in answer.error


def check_recovery(processes: Processes, setting: Setting) -> None:
    """The same processes meet in a new session and publish."""
    processes.call(sorted(peers_of(setting), reverse=True), "leave")
    connect(processes, setting)
    processes.call(peers_of(setting), "publish", 4)
    assert all(processes.call(workers_of(setting), "holds", 4))


def cases(*quick: tuple[Setting, int], slow: Sequence[tuple[Setting, int]]) -> pytest.MarkDecorator:
    """(setting, victim), named after both."""
    marked = [*((case, ()) for case in quick), *((case, pytest.mark.slow) for case in slow)]
    named = {id(NETWORK): "network", id(SHARED): "shared memory", id(MAPPED): "mapped", id(RELAY): "relay"}
    return pytest.mark.parametrize(
        ("setting", "victim"),
        [
            pytest.param(setting, victim, marks=marks, id=f"{named[id(setting)]}, {NAMES[victim]}")
            for (setting, victim), marks in marked
        ],
    )


@cases(
    (NETWORK, 1),
    (NETWORK, 0),
    (NETWORK, 3),
    (RELAY, 3),
    slow=[(SHARED, 1), (SHARED, 0), (SHARED, 3), (MAPPED, 1), (MAPPED, 3), (RELAY, 1), (RELAY, 0)],
)
def test_a_killed_peer(setting: Setting, victim: int) -> None:
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        answers = publish_with_fault(processes, setting, victim=victim, action="kill")
        assert answers.pop(victim).died
        check_failures(answers, setting, within_s=AT_ONCE_S)
        for answer in answers.values():
            assert NAMES[victim] in answer.error
        assert all(processes.call(workers_of(setting) - {victim}, "holds", 2))


@cases((NETWORK, 1), (NETWORK, 3), slow=[(SHARED, 1), (SHARED, 3), (MAPPED, 3), (RELAY, 1), (RELAY, 3)])
def test_a_stalled_peer(setting: Setting, victim: int) -> None:
    """It too ends with an error once it goes on; then a new session works."""
    setting = replace(setting, timeout_s=STALL_S)
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        answers = publish_with_fault(processes, setting, victim=victim, action="stop")
        check_failures(answers, setting, within_s=STALL_S + SLACK_S)
        processes.resume(victim)
        late = processes.collect([victim], timeout_s=STALL_S + SLACK_S)
        check_failures(late, setting, within_s=3 * (STALL_S + SLACK_S))  # its own clock ran on meanwhile
        assert all(processes.call(workers_of(setting), "holds", 2))
        check_recovery(processes, setting)
    check_blame(answers, victim)


@pytest.mark.slow
def test_policy_rank_0_stalls() -> None:
    """The store stops with it: requests to it end all the same."""
    setting = replace(NETWORK, timeout_s=STALL_S)
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        answers = publish_with_fault(processes, setting, victim=0, action="stop")
        check_failures(answers, setting, within_s=STALL_S + SLACK_S)


@cases((NETWORK, 1), (SHARED, 1), (MAPPED, 1), (RELAY, 3), slow=[(RELAY, 1)])
def test_a_flipped_bit(setting: Setting, victim: int) -> None:
    """After the checksum was computed, in the message or, where a worker reads that, in the policy's parameter; the
    session is over, and a new one works."""
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        answers = publish_with_fault(
            processes, setting, victim=victim, action="change" if setting is MAPPED else "flip"
        )
        check_failures(answers, setting, within_s=AT_ONCE_S)
        for answer in answers.values():
            assert f"arrived changed from {NAMES[victim]}, by its checksum" in answer.error
        assert all(processes.call(workers_of(setting), "holds", 2))
        for peer in peers_of(setting):
            processes.order(peer, "publish", 3)
        again = processes.collect(peers_of(setting))
        assert all("the session ended with an earlier failure" in answer.error for answer in again.values())
        check_recovery(processes, setting)


def test_a_worker_dies_between_publications() -> None:
    setting = replace(NETWORK, timeout_s=STALL_S)
    with Processes(setting.num_peers, Peer) as processes:
        connect(processes, setting)
        processes.call(peers_of(setting), "publish", 2)
        processes.kill(3)
        for peer in range(3):
            processes.order(peer, "publish", 3)
        answers = processes.collect(range(3), timeout_s=STALL_S + 2 * SLACK_S)
        for answer in answers.values():
            assert answer.error.startswith("TransportError: ")
            assert "weights version 3" in answer.error
            assert answer.seconds < STALL_S + SLACK_S
        assert NOT_INSTALLED in answers[2].error
        assert processes.call([2], "holds", 2) == [True]
    check_blame(answers, 3)
