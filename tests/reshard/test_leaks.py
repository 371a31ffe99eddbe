"""A long run: what the processes of a publication hold does not grow with the number of versions or of sessions."""

import pytest

from tests.reshard.fault_processes import Processes
from tests.reshard.publication import Peer, Resources, Setting, connect

SETTINGS = {
    "network": Setting(timeout_s=60.0),
    "network, changes only": Setting(timeout_s=60.0, delta=True),
    "shared memory": Setting(timeout_s=60.0, transport="shared_memory"),
    "mapped": Setting(timeout_s=60.0, transport="mapped"),
}
MOST_MIB = 5.0
ROLES = ("policy rank 0", "engine 0 worker 0")


def check_growth(role: str, before: Resources, after: Resources) -> None:
    """Equal, but for a little memory. Threads come and go: an engine worker's last one may be about to end."""
    print(f"{role}: {before} -> {after}")
    assert after.rss_mib - before.rss_mib < MOST_MIB
    assert after.descriptors == before.descriptors
    assert abs(after.threads - before.threads) <= 1
    assert after.keys == before.keys


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_thousand_publications(name: str) -> None:
    with Processes(2, Peer) as processes:
        connect(processes, SETTINGS[name])
        early = processes.call(range(2), "publish_many", range(1, 101), timeout_s=100)
        late = processes.call(range(2), "publish_many", range(101, 1001), timeout_s=400)
    for role, before, after in zip(ROLES, early, late, strict=True):
        check_growth(role, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_fifty_sessions(name: str) -> None:
    """Each opened, used twice and closed by the same processes."""
    with Processes(2, Peer) as processes:
        found = []
        for _ in range(50):
            connect(processes, SETTINGS[name])
            found.append(processes.call(range(2), "publish_many", range(1, 3)))
            processes.call([1, 0], "leave")
    for role, before, after in zip(ROLES, found[9], found[49], strict=True):
        check_growth(role, before, after)
