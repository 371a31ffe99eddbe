"""One update per step: scored by its own forward it does what it does after a pass for the scores, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megarl.config.run import RunConfig
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.optimizer import forget_moments
from megarl.policy.reports import UpdateReport, scores_by_sample
from megarl.policy.worker import MegatronWorker
from megarl.records import TokenScores
from tests.policy.ranks import export, make_checkpoint, make_config, make_samples, run_workers
from tests.policy.test_layout_matrix import LAYOUTS, OBJECTIVE

SIZES = {"train": {"prompts_per_step": 4, "samples_per_prompt": 4, "mini_batch_responses": 16, "steps": 4}}
SEQUENCES = {
    "objective__ratio": {"level": "sequence"},
    "objective__clip": {"low": 0.0, "high": 0.0},
    "objective__weights": {"positive_scale": {"scale": 0.7}},
    "objective__auxiliary": {"entropy": {"coefficient": 0.03}},
}
CASES = {
    **{name: {**OBJECTIVE, **layout} for name, layout in LAYOUTS.items()},
    "sequences": SEQUENCES,
    "sequences DP2": {**SEQUENCES, "parallel": {"world_size": 2}},
}
CONTROLS = Controls(step=1, seed=0, entropy_coefficient=0.03, positive_scale=0.7)


def update_both_ways(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]
) -> list[tuple[Any, ...]] | None:
    """(scores, reports, weights) of one update from the same weights: after a pass for the scores, and without."""
    start = {name: value.clone() for name, value in worker._chunks[0].state_dict().items() if value is not None}
    shard, every = shards[worker._grid.position(rank).data], range(config.train.responses_per_step)
    outcomes: list[tuple[Any, ...]] = []
    for in_update in (False, True):
        worker._chunks[0].load_state_dict(start, strict=False)
        worker._optimizer.reload_model_params()
        forget_moments(worker._optimizer)
        worker._updates = 0
        if in_update:
            scored = worker.score_and_differentiate(shard, CONTROLS)
            unchanged = all(
                torch.equal(value, start[name])
                for name, value in worker._chunks[0].state_dict().items()
                if value is not None
            )
            assert unchanged, "scores changed a weight"
            report = worker.apply_update(traced=every)
        else:
            scored = worker.score(shard)
            report = worker.train_mini_batch(0, CONTROLS, traced=every)
        scores = None if scored is None else list(scores_by_sample(shard, scored))
        gathered: list[Any] = [None] * config.parallel.world_size
        dist.all_gather_object(gathered, (scores, report))
        weights = {name: value.numpy() for name, value in export(worker).items()}
        outcomes.append((gathered, weights))
    return outcomes if rank == 0 else None


@pytest.mark.parametrize("world", [1, 2, 4])
def test_it_does_the_same(tmp_path: Path, world: int) -> None:
    from megarl.controller.batching import shard_step

    path, samples = make_checkpoint(tmp_path / "model"), make_samples(16, seed=1)
    cases = {
        name: make_config(path, **{**changes, **SIZES})
        for name, changes in CASES.items()
        if changes.get("parallel", {}).get("world_size", 1) == world
    }
    assert all(config.scores_in_update for config in cases.values())
    jobs = [(config, (shard_step(samples, config),)) for config in cases.values()]
    for name, (after_a_pass, in_update) in zip(cases, run_workers(jobs, update_both_ways), strict=True):
        assert in_update[1].keys() == after_a_pass[1].keys(), name
        for tensor, weight in after_a_pass[1].items():
            assert (in_update[1][tensor] == weight).all(), f"{name}: {tensor}"
        for (scores, report), (expected_scores, expected) in zip(in_update[0], after_a_pass[0], strict=True):
            assert_same_scores(name, scores, expected_scores, reference=config_has_kl(cases[name]))
            assert_same_report(name, report, expected)


def config_has_kl(config: RunConfig) -> bool:
    return config.objective.auxiliary.kl is not None


def assert_same_scores(
    name: str, scores: list[TokenScores] | None, expected: list[TokenScores] | None, *, reference: bool
) -> None:
    assert (scores is None) == (expected is None), name
    for got, want in zip(scores or (), expected or (), strict=True):
        assert got.sample_id == want.sample_id, name
        assert got.old_logp.tolist() == want.old_logp.tolist(), name
        assert got.old_entropy.tolist() == want.old_entropy.tolist(), name
        assert (got.ref_logp is not None) == (want.ref_logp is not None) == reference, name
        if got.ref_logp is not None and want.ref_logp is not None:
            assert got.ref_logp.tolist() == want.ref_logp.tolist(), name


def assert_same_report(name: str, report: UpdateReport | None, expected: UpdateReport | None) -> None:
    assert (report is None) == (expected is None), name
    if report is None or expected is None:
        return
    assert report.sums.sum_N.tolist() == expected.sums.sum_N.tolist(), name
    assert (report.grad_norm, report.lr) == (expected.grad_norm, expected.lr), name
    assert repr(report.traces) == repr(expected.traces), name


def apply_without_gradients(worker: MegatronWorker, config: RunConfig, rank: int) -> str:
    with pytest.raises(RuntimeError) as caught:
        worker.apply_update()
    return str(caught.value)


def test_gradients_are_applied_once(tmp_path: Path) -> None:
    config = make_config(make_checkpoint(tmp_path / "model"))
    (text,) = run_workers([(config, ())], apply_without_gradients)
    assert text.startswith("apply_update before score_and_differentiate")
