"""A checkpoint that lost something on the disk is refused by the rank that reads it, with the file and the tensor."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import MANIFEST_FILE, Manifest
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers
from tests.policy.states import keep_state, save_checkpoint
from tests.policy.test_state import assert_same

CONTROLS = Controls(step=1, seed=0)
PART = "__0_0.distcp"


def flip_a_byte(path: Path) -> None:
    """In the middle of a tensor."""
    with open_dist_checkpoint(path) as checkpoint:
        (chunk, *_) = checkpoint.tensors["decoder.layers.mlp.linear_fc2.weight"].chunks
    with (path / chunk.file).open("r+b") as file:
        file.seek(chunk.offset + chunk.length // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def claim_another_model(path: Path) -> None:
    manifest = Manifest.read(path)
    dataclasses.replace(manifest, model=manifest.model | {"rope_theta": 5.0}).write(path)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (
        lambda path: (path / PART).unlink(),
        r"is damaged: __0_0\.distcp: expected \d+ bytes, found none",
    ),
    "truncated": (
        lambda path: os.truncate(path / PART, 100),
        r"is damaged: __0_0\.distcp: expected \d+ bytes, found 100",
    ),
    "manifest missing": (
        lambda path: (path / MANIFEST_FILE).unlink(),
        r"manifest\.json is missing: the checkpoint was never complete, or is none of a run; use another",
    ),
    "metadata damaged": (
        lambda path: (path / ".metadata").write_bytes(bytes((path / ".metadata").stat().st_size)),
        r"\.metadata is damaged \(",
    ),
    "another model": (
        claim_another_model,
        r"is of another model than model\.path: rope_theta: expected \d+.*, found 5\.0",
    ),
}
"""What makes the rank refuse before it has changed anything."""


def test_damage_is_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    config = make_config(path, train__mini_batch_responses=16)
    shards = shard_step(make_samples(16), config)
    (messages,) = run_workers([(config, (shards, str(tmp_path)))], damage_and_load)
    for name, (_, expected) in DAMAGES.items():
        assert re.search(expected, messages[name]), f"{name}: {messages[name]}"
    flipped = (
        r"step-000001/__0_0\.distcp: decoder\.layers\.mlp\.linear_fc2\.weight at \[0, 0, 0\] is damaged: its bytes"
    )
    assert re.search(flipped, messages["flipped"]), messages["flipped"]


def damage_and_load(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str
) -> dict[str, str]:
    train_once(worker, shards[0])
    saved = save_checkpoint(worker, config, directory)
    train_once(worker, shards[0])
    before = keep_state(worker)
    messages = {}
    for name, (damage, _) in DAMAGES.items():
        messages[name] = load_damaged(worker, saved, damage)
        assert_same(keep_state(worker), before)
    messages["flipped"] = load_damaged(worker, saved, flip_a_byte)
    worker.load_checkpoint(str(saved))  # whole, it can still be read
    return messages


def train_once(worker: MegatronWorker, shard: BatchShard) -> None:
    worker.score(shard)
    worker.train_mini_batch(0, CONTROLS)


def load_damaged(worker: MegatronWorker, saved: Path, damage: Callable[[Path], None]) -> str:
    copy = saved.parent / "copy" / saved.name
    shutil.copytree(saved, copy)
    damage(copy)
    with pytest.raises(CheckpointError) as caught:
        worker.load_checkpoint(str(copy))
    shutil.rmtree(copy.parent)
    return str(caught.value)
