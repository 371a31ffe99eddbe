"""Publications between processes: whatever layouts, transport and fan-out, every worker holds exactly the version."""

import math
import random
from dataclasses import replace

import pytest
import torch

from megarl.models.table import hf_tensors
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
    "tp2 pp2 to tp4, mapped": Setting(tensor=2, pipeline=2, rollout_tensor=4, transport="mapped"),
    "dp2 to two engines of two, mapped, bfloat16": Setting(
        data=2, engines=2, rollout_tensor=2, transport="mapped", dtype=torch.bfloat16, min_share_bytes=4
    ),
    "tp2 to tp1, bfloat16": Setting(tensor=2, dtype=torch.bfloat16),
    "tp2 to tp1, bfloat16, changes only": Setting(tensor=2, dtype=torch.bfloat16, delta=True),
    "messages of one tensor and more": Setting(tensor=2, rollout_tensor=2, bucket_bytes=1 << 20),
    "messages of ten elements": Setting(shape=make_shape(), bucket_bytes=40),
    "read as it is sent, to two engines of two, bfloat16": Setting(
        stored=True, engines=2, rollout_tensor=2, dtype=torch.bfloat16
    ),
    "read as it is sent, shared memory": Setting(stored=True, rollout_tensor=2, transport="shared_memory"),
    "read as it is sent, changes only": Setting(stored=True, delta=True),
    "read as it is sent, of ten elements": Setting(stored=True, shape=make_shape(), bucket_bytes=40),
}

ENGINES = Setting(engines=3, rollout_tensor=2, nodes="an engine", min_share_bytes=64)
FANS = {
    "direct": replace(ENGINES, fanout="direct"),
    "node": replace(ENGINES, fanout="node"),
    "node, changes only": replace(ENGINES, fanout="node", delta=True),
    "relay": replace(ENGINES, fanout="relay"),
    "relay, changes only": replace(ENGINES, fanout="relay", delta=True),
    "relay, bfloat16, changes only": replace(ENGINES, fanout="relay", delta=True, dtype=torch.bfloat16),
    "all_gather": replace(ENGINES, fanout="all_gather"),
    "all_gather, changes only": replace(ENGINES, fanout="all_gather", delta=True),
    "all_gather, a node a worker": replace(ENGINES, fanout="all_gather", nodes="a worker"),
    "relay, two replicas": replace(ENGINES, fanout="relay", data=2, rollout_tensor=1),
    "all_gather, two replicas": replace(ENGINES, fanout="all_gather", data=2, rollout_tensor=1, delta=True),
    "chosen by the estimate": ENGINES,
}


def check(setting: Setting, peers: list[PeerResult]) -> None:
    """Every worker held every version and received nothing twice; few changes were few bytes."""
    policy_ranks, workers = peers[: setting.grid.world_size], peers[setting.grid.world_size :]
    for worker in workers:
        assert all(held is True for held in worker.versions)
        assert worker.received_over_bound == 1.0
    for reports in zip(*(policy.versions for policy in policy_ranks), strict=True):
        sent, dense = (sum(getattr(report, name) for report in reports) for name in ("bytes", "dense_bytes"))
        if setting.delta and reports[0].version % 2:
            assert sent < 0.2 * dense
            # A place is compared once, however many workers get it; one element in 37 of each tensor changed.
            changed, compared = (sum(getattr(r, name) for r in reports) for name in ("num_changed", "num_compared"))
            assert 1 / 37 <= changed / compared < 1 / 25
        else:  # all changed: whole messages, never more
            assert sent == dense


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
    peers = run(setting, VERSIONS[:3])
    check(setting, peers)
    policy_ranks, workers = peers[: setting.data], peers[setting.data :]
    (fanout,) = {peer.fanout for peer in peers}
    assert fanout == (setting.fanout or fanout)
    assert (fanout == "direct") == (not any(worker.num_sends for worker in workers))
    model = sum(math.prod(dims) for dims in hf_tensors(setting.shape).values()) * setting.dtype.itemsize
    sent = sum(policy.versions[0].bytes for policy in policy_ranks)
    match fanout:
        case "direct":  # and twice to an engine what both of its workers want
            assert sent > 3 * model
        case "node":
            assert sent == 3 * model
        case "relay" | "all_gather":
            assert sent == model


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
