"""In a step's first update the policy is the old one: what rounding makes of its ratio decides nothing."""

import dataclasses
from functools import reduce
from operator import or_
from pathlib import Path

import pytest

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.policy.worker import MegatronWorker
from megarl.records import Sample, TokenTrace
from megarl.rules import Rule
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers

OBJECTIVE = {
    # The narrowest bounds that are legal: any ratio but 1 is outside.
    "clip": {"kind": "constant", "low": 0.0, "high": 0.0},
    "weights": {"erc": {"low": 1.0 - 1e-9, "high": 1.0 + 1e-9}},
    "auxiliary": {"kl_cov": {"fraction": 1.0}},
}


def train_after_moved_scores(
    worker: MegatronWorker, config: RunConfig, rank: int, samples: list[Sample], moves: list[float]
) -> list[list[TokenTrace]]:
    """The traces of a first update, as if the scoring pass had given log-probs and entropies that are off by each of
    `moves`; no learning rate, so that all start from the same weights."""
    results = []
    for move in moves:
        worker.score(shard_step(samples, config)[0])
        worker._scores = [
            [
                dataclasses.replace(
                    scored, old_logp_R=scored.old_logp_R - move, old_entropy_R=scored.old_entropy_R - move
                )
                for scored in mini
            ]
            for mini in worker._scores
        ]
        worker._optimizer.step = lambda: (True, 0.0, None)
        report = worker.train_mini_batch(0, Controls(step=1, seed=0), traced=range(8))
        results.append(list(report.traces))
    return results


def test_a_first_update_sees_a_ratio_of_one(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    config = make_config(path, objective=OBJECTIVE)
    exact, rounded, other = run_workers(
        [(config, (make_samples(16, seed=4), [0.0, 3e-6, 0.25]))], train_after_moved_scores
    )[0]
    for traces in (exact, rounded):
        assert {ratio for trace in traces for ratio in trace.ratio} == {1.0}
        assert {rule for trace in traces for rule in trace.rule} == {Rule.KL_COV}
    for trace, of_exact in zip(rounded, exact, strict=True):
        assert trace.coefficient == pytest.approx(of_exact.coefficient)
    # What is no rounding stays to be seen.
    assert {round(ratio, 3) for trace in other for ratio in trace.ratio.tolist()} == {1.284}
    rules = reduce(or_, (Rule(int(flags)) for trace in other for flags in trace.rule))
    assert rules == Rule.CLIP_HIGH | Rule.ERC | Rule.KL_COV
