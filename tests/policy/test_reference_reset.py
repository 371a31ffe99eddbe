"""ProRL's reset: the reference becomes the policy, and the optimizer forgets its moments and steps."""

from pathlib import Path
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.moments import MOMENTS
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers

CONTROLS = Controls(step=1, seed=0)
LAYOUTS = {
    "one rank": {},
    "DP2, distributed optimizer": {"parallel": {"world_size": 2}},
    "TP2, plain optimizer": {"parallel": {"tensor": 2, "world_size": 2}, "policy__distributed_optimizer": False},
    "bfloat16": {"model__dtype": "bfloat16"},
}


def test_reset_under_every_kind_of_optimizer(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    configs = [
        make_config(path, objective={"auxiliary": {"kl": {"coefficient": 0.5}}}, **layout)
        for layout in LAYOUTS.values()
    ]
    jobs = [(config, (shard_step(make_samples(16), config),)) for config in configs]
    for name, result in zip(LAYOUTS, run_workers(jobs, train_and_reset), strict=True):
        before, after, moments = result
        assert before > 1e-3, name
        assert after < 1e-5, name  # the same weights at other addresses may round otherwise
        assert moments == pytest.approx([0.0] * len(moments), abs=0), name
        assert moments, name


def train_and_reset(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]
) -> tuple[float, float, list[float]]:
    shard = shards[worker._grid.position(rank).data]
    worker.score(shard)
    for index in range(config.train.updates_per_step):
        worker.train_mini_batch(index, CONTROLS)
    before = distance(worker.score(shard))
    worker.reset_reference()
    return before, distance(worker.score(shard)), moment_sizes(worker)


def distance(scored: Any) -> float:
    """Largest |old_logp - ref_logp|; 0 on ranks that do not report."""
    batches = [batch for mini in scored or () for batch in mini]
    return max((float(abs(batch.old_logp_R - batch.ref_logp_R).max()) for batch in batches), default=0.0)


def moment_sizes(worker: MegatronWorker) -> list[float]:
    moments = [share.moments for share in worker._state.shares().values()]
    sizes = [float(of_share[name].abs().max()) for of_share in moments for name in MOMENTS]
    return [*sizes, *(float(of_share.step) for of_share in moments)]


def test_no_reference_no_reset(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    (message,) = run_workers([(make_config(path), ())], reset_without_reference)
    assert "no KL" in message


def reset_without_reference(worker: MegatronWorker, config: RunConfig, rank: int) -> str:
    with pytest.raises(RuntimeError) as caught:
        worker.reset_reference()
    return str(caught.value)
