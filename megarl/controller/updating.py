"""A step's updates, and what must be true of the scores before the first of them changes a weight.

Usually the old log-probs have a pass of their own. In the only update of a step the policy is the old one: then they
are those of the update's forward, its gradients wait until they are checked, and the pass is left out, unless something
must know them before the loss (`RunConfig.scores_in_update`). What is checked, reported and trained is the same.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.controller.mismatch import (
    LogpDiff,
    check_finite,
    check_logp_diff,
    compute_logp_diff,
    compute_mean_entropy,
)
from megarl.controller.parts import Parts
from megarl.controller.reporting import rollouts_due
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult, merge_results
from megarl.records import Rollout, Sample, TokenScores, TokenTrace
from megarl.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training on a step's samples gave."""

    token_scores: Sequence[TokenScores]
    """In the samples' order."""
    traces: Sequence[TokenTrace]
    difference: LogpDiff
    """Of the scores from vLLM's log-probs."""
    metrics: Metrics
    """Of the updates."""


async def train_on(
    step: int, samples: Sequence[Sample], rollouts: Sequence[Rollout], *, config: RunConfig, parts: Parts
) -> Trained:
    """The step's updates, and the reference's renewal where one is due after them.

    Raises:
        NonFiniteLogpError, LogpMismatchError: of the scores; no weight was changed.
    """
    if config.scores_in_update:
        scores, difference, updates, traces = await _score_in_update(step, samples, rollouts, config, parts)
    else:
        scores, difference, controls = await _score(step, samples, rollouts, config, parts)
        updates, traces = await _update(controls, config, parts)
    merged = merge_results(updates)
    if parts.controllers.end_step(merged.kl.value if merged.kl.count else None):
        with parts.reporter.phase("reset_reference"):
            await parts.policy.reset_reference()
    return Trained(token_scores=scores, traces=traces, difference=difference, metrics=merged.metrics)


async def _score(
    step: int, samples: Sequence[Sample], rollouts: Sequence[Rollout], config: RunConfig, parts: Parts
) -> tuple[list[TokenScores], LogpDiff, Controls]:
    with parts.reporter.phase("old_logp"):
        scores = await parts.policy.score(await asyncio.to_thread(shard_step, samples, config))
    return await _begin_step(step, rollouts, scores, config, parts)


async def _begin_step(
    step: int, rollouts: Sequence[Rollout], scores: Sequence[TokenScores], config: RunConfig, parts: Parts
) -> tuple[list[TokenScores], LogpDiff, Controls]:
    """(the scores in the samples' order, their difference from vLLM, the step's numbers) where both may be believed."""
    ordered = sorted(scores, key=lambda of_sample: of_sample.sample_id)
    difference, mean_entropy = await asyncio.to_thread(_check_scores, rollouts, ordered)
    check_logp_diff(difference, step=step, config=config)
    return ordered, difference, parts.controllers.begin_step(step, mean_entropy)


def _check_scores(rollouts: Sequence[Rollout], scores: Sequence[TokenScores]) -> tuple[LogpDiff, float]:
    """(the trainer's difference from vLLM, the mean entropy before the first update) of finite numbers."""
    difference, mean_entropy = compute_logp_diff(rollouts, scores), compute_mean_entropy(scores)
    # A sum is finite where its terms are; they are looked at one by one where it is not.
    if not math.isfinite(difference.mean.total) or not math.isfinite(mean_entropy):
        check_finite(rollouts, scores)
    return difference, mean_entropy


async def _update(controls: Controls, config: RunConfig, parts: Parts) -> tuple[list[UpdateResult], list[TokenTrace]]:
    updates: list[UpdateResult] = []
    traces: list[TokenTrace] = []
    with parts.reporter.phase("update", total=config.train.updates_per_step) as phase:
        for index in range(config.train.updates_per_step):
            of_update, of_tokens = await parts.policy.train_mini_batch(
                index, controls, traced=traced_ids(index, controls.step, config)
            )
            updates.append(of_update)
            controls = parts.controllers.end_update(of_update.loop)
            parts.reporter.report_update(controls.step, index, of_update.metrics)
            traces += of_tokens
            phase.advance(1)
    return updates, traces


async def _score_in_update(
    step: int, samples: Sequence[Sample], rollouts: Sequence[Rollout], config: RunConfig, parts: Parts
) -> tuple[list[TokenScores], LogpDiff, list[UpdateResult], list[TokenTrace]]:
    """As `_score` and `_update` of one update, without a pass for the scores."""
    with parts.reporter.phase("update", total=1) as phase:
        foreseen = parts.controllers.foresee(step)
        shards = await asyncio.to_thread(shard_step, samples, config)
        scored = await parts.policy.score_and_differentiate(shards, foreseen)
        scores, difference, controls = await _begin_step(step, rollouts, scored, config, parts)
        if controls != foreseen:
            raise RuntimeError(f"step {step} was differentiated with {foreseen}, but its numbers are {controls}")
        update, traces = await parts.policy.apply_update(traced=traced_ids(0, step, config))
        parts.reporter.report_update(step, 0, update.metrics)
        phase.advance(1)
    return scores, difference, [update], traces


def traced_ids(index: int, step: int, config: RunConfig) -> range:
    """The samples of mini-batch `index` whose tokens are traced: its first ones, as many in every mini-batch, because
    nothing is clipped in a step's first update and most in its last."""
    size = config.train.mini_batch_responses
    each = math.ceil(config.logging.traced_responses / config.train.updates_per_step)
    start = index * size
    return range(start, start + (min(each, size) if rollouts_due(step, config) else 0))
