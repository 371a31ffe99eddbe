"""NaN or infinity in a loss: every rank says which samples, and no weight is changed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.reports import NonFiniteLossError
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers

LAYOUTS: list[dict[str, Any]] = [
    {"parallel": {"tensor": 2, "world_size": 2}},
    {"parallel": {"pipeline": 2, "world_size": 2}},
    {"parallel": {"world_size": 2}},
]


def test_its_samples_are_named_and_no_weight_is_changed(tmp_path: Path) -> None:
    path, samples = make_checkpoint(tmp_path / "model"), make_samples(16)
    configs = [make_config(path, **layout) for layout in LAYOUTS]
    jobs = [(config, (shard_step(samples, config),)) for config in configs]
    for message, unchanged in run_workers(jobs, break_and_update):
        assert "NaN or infinity in the micro-batches with samples [[" in message
        assert "no weight was changed. Look at the weights the run started from" in message
        assert unchanged


def break_and_update(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]
) -> tuple[str, bool]:
    """Score, make one layer's weight NaN on the last pipeline stage, update; the message, and whether it kept all."""
    shard = shards[worker._grid.position(rank).data]
    worker.score(shard)
    place = worker._grid.position(rank)
    if place.pipeline == config.parallel.pipeline - 1:
        weight = dict(worker._chunks[-1].named_parameters())["decoder.final_layernorm.weight"]
        weight.data[0] = float("nan")
    before = [parameter.detach().clone() for chunk in worker._chunks for parameter in chunk.parameters()]
    with pytest.raises(NonFiniteLossError) as caught:
        worker.train_mini_batch(0, Controls(step=1, seed=0, entropy_coefficient=0.0), traced=range(0))
    after = [parameter.detach() for chunk in worker._chunks for parameter in chunk.parameters()]
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))
    return str(caught.value), same
