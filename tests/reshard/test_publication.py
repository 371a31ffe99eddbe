"""Publications between processes: whatever layouts, transport and fan-out, every worker holds exactly the version."""

import random
from dataclasses import replace

import pytest
import torch

from megarl.reshard.fanout import FANOUTS
from tests.models.shapes import make_shape
from tests.reshard.publication import PeerResult, Setting, run

VERSIONS = (2, 3, 4, 5)
"""An odd version changes few elements of the one before, an even one all."""

LAYOUTS = {
    "tp2 pp2 to tp4, shared memory": Setting(tensor=2, pipeline=2, rollout_tensor=4, transport="shared_memory"),
    "pp2 to one engine": Setting(pipeline=2),
    "pp2 to one engine, changes only": Setting(pipeline=2, delta=True),
    "tp2 dp2 to two engines": Setting(tensor=2, data=2, engines=2, min_share_bytes=4),
    "tp2 dp2 to two engines, changes only": Setting(tensor=2, data=2, engines=2, min_share_bytes=4, delta=True),
    "dp2 to tp2, shared memory, bfloat16": Setting(
        data=2, rollout_tensor=2, transport="shared_memory", dtype=torch.bfloat16, min_share_bytes=4
    ),
    "tp2 to tp1, bfloat16": Setting(tensor=2, dtype=torch.bfloat16),
    "tp2 to tp1, bfloat16, changes only": Setting(tensor=2, dtype=torch.bfloat16, delta=True),
    "messages of one tensor and more": Setting(tensor=2, rollout_tensor=2, bucket_bytes=1 << 20),
    "messages of ten elements": Setting(shape=make_shape(), bucket_bytes=40),
}

FANS = {
    f"{fanout}{', changes only' if delta else ''}": Setting(
        engines=3, rollout_tensor=2, nodes="an engine", fanout=fanout, delta=delta, min_share_bytes=64
    )
    for fanout in FANOUTS
    for delta in (False, True)
} | {
    "all_gather, a node a worker": Setting(
        engines=3, rollout_tensor=2, nodes="a worker", fanout="all_gather", min_share_bytes=4
    ),
    "chosen by the estimate": Setting(engines=3, rollout_tensor=2, nodes="an engine", min_share_bytes=4),
    "relay, bfloat16, changes only": Setting(
        engines=3, rollout_tensor=2, nodes="an engine", fanout="relay", delta=True, dtype=torch.bfloat16
    ),
}


def check(setting: Setting, peers: list[PeerResult]) -> None:
    """Every worker held every version and received nothing twice; few changes were few bytes."""
    trainers, workers = peers[: setting.grid.world_size], peers[setting.grid.world_size :]
    for worker in workers:
        assert worker.versions == [True] * len(VERSIONS)
        assert worker.received_over_bound == 1.0
    sent = [[report.bytes for report in trainer.versions] for trainer in trainers]
    dense = [[report.dense_bytes for report in trainer.versions] for trainer in trainers]
    bytes_sent, bytes_dense = ([sum(of_rank) for of_rank in zip(*table, strict=True)] for table in (sent, dense))
    assert len(set(bytes_dense)) == 1
    if not setting.delta:
        assert bytes_sent == bytes_dense
        return
    for number, version in enumerate(VERSIONS):
        if version % 2:
            assert bytes_sent[number] < 0.2 * bytes_dense[number]
        else:  # all changed: whole messages, never more
            assert bytes_sent[number] == bytes_dense[number]
    reports = [trainer.versions[1] for trainer in trainers]
    # A place is compared once, however many workers get it; one element in 37 of each tensor changed.
    assert 1 / 37 <= sum(r.num_changed for r in reports) / sum(r.num_compared for r in reports) < 1 / 25


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    setting = LAYOUTS[name]
    peers = run(setting, VERSIONS)
    check(setting, peers)
    if setting.data > 1:  # both replicas send
        assert all(peer.num_sends for peer in peers[: setting.grid.world_size])


@pytest.mark.parametrize("name", FANS)
def test_fanouts(name: str) -> None:
    setting = FANS[name]
    trainer, *workers = peers = run(setting, VERSIONS)
    check(setting, peers)
    assert {peer.fanout for peer in peers} == {setting.fanout or trainer.fanout}
    assert (trainer.fanout == "direct") == (not any(worker.num_sends for worker in workers))


def test_fanouts_spare_the_trainer() -> None:
    """Each of three nodes gets one copy, or one of them for all; direct sends what two tensor ranks share twice."""
    sent = {fanout: run(FANS[fanout], VERSIONS[:1])[0].versions[0].bytes for fanout in FANOUTS}
    assert sent["direct"] > sent["node"] == 3 * sent["relay"] == 3 * sent["all_gather"]


def draw_setting(chance: random.Random) -> Setting:
    """Any layout of at most eight peers."""
    while True:
        setting = Setting(
            tensor=chance.choice((1, 2)),
            pipeline=chance.choice((1, 2)),
            data=chance.choice((1, 2)),
            engines=chance.choice((1, 2, 3)),
            rollout_tensor=chance.choice((1, 2, 4)),
            transport=chance.choice(("network", "network", "shared_memory")),
            delta=chance.random() < 0.5,
            bucket_bytes=chance.choice((100, 512, 4096)),
            dtype=chance.choice((torch.float32, torch.bfloat16)),
            fanout=chance.choice((None, *FANOUTS)),
            nodes=chance.choice(("one", "an engine", "a worker")),
            min_share_bytes=chance.choice((4, 64, 1000, None)),
            shape=make_shape(
                hidden_size=24,
                ffn_size=32,
                vocab_size=chance.choice((11, 50, 130)),
                tied_embeddings=chance.random() < 0.5,
                qkv_bias=chance.random() < 0.5,
            ),
        )
        if setting.transport == "shared_memory":  # is for one node, to which everyone gives what it has
            setting = replace(setting, nodes="one", fanout=None, delta=False)
        if setting.num_peers <= 8:
            return setting


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_random_settings(seed: int) -> None:
    setting = draw_setting(random.Random(seed))
    check(setting, run(setting, VERSIONS))
