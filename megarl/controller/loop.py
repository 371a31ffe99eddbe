"""The RL loop. One coroutine; it knows Protocols, not Ray.

Step: propose prompts -> generate -> score -> advantages -> old and reference log-probs -> K mini-batch updates ->
publish weights. `policy_version` is the number of finished steps whose updates the weights contain.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.controller.mismatch import check_finite, check_logp_diff, compute_logp_diff
from megarl.controller.protocols import PolicyGroup, RolloutPool, Scorer
from megarl.controller.reporting import StepRecord, StepReporter
from megarl.data.sampler import PromptSampler
from megarl.objective.advantage import compute_advantages
from megarl.records import Prompt, Rollout, Sample, SampleRequest, Score
from megarl.rewards.pool import RewardItem
from megarl.telemetry.metrics import Metrics, merge


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the loop works with."""

    policy: PolicyGroup
    pool: RolloutPool
    scorer: Scorer
    prompts: Sequence[Prompt]
    sampler: PromptSampler
    decode: Callable[[Sequence[int]], str]
    """Response tokens to text, special tokens left out."""
    reporter: StepReporter


async def train(config: RunConfig, parts: Parts) -> None:
    """Run `config.train.steps` steps; raises what a part raises."""
    for step in range(1, config.train.steps + 1):
        with parts.reporter.spans.measure("step"):
            record = await train_step(step, config, parts)
        parts.reporter.report(record, sampler=parts.sampler.state_dict())
        if export_due(step, config):
            await parts.policy.export_hf(str(parts.reporter.checkpoint_path(step)))


def export_due(step: int, config: RunConfig) -> bool:
    """Whether a checkpoint is written after `step`: every train.export_every steps, and always after the last."""
    every = config.train.export_every
    return step == config.train.steps or (every > 0 and step % every == 0)


async def train_step(step: int, config: RunConfig, parts: Parts) -> StepRecord:
    """One step, from prompts to published weights."""
    report = parts.reporter
    prompts = [parts.prompts[index] for index in parts.sampler.next_batch()]
    with report.phase("generate", total=config.train.responses_per_step) as phase:
        requests = sample_requests(prompts, step=step, config=config)
        rollouts = await parts.pool.generate(requests, phase.advance)
    with report.phase("reward"):
        items = reward_items(prompts, rollouts, parts.decode)
        scores = await parts.scorer.score(items, step=step)
    samples = with_advantages(rollouts, scores, config)
    shards = shard_step(samples, config)
    with report.phase("old_logp"):
        token_scores = sorted(await parts.policy.score(shards), key=lambda scored: scored.sample_id)
    check_finite(rollouts, token_scores)
    difference = compute_logp_diff(rollouts, token_scores)
    check_logp_diff(difference, step=step, config=config)
    updates: list[Metrics] = []
    with report.phase("update", total=config.train.updates_per_step) as phase:
        for index in range(config.train.updates_per_step):
            updates.append(await parts.policy.train_mini_batch(index))
            phase.advance(1)
    with report.phase("publish"):
        published, _ = await asyncio.gather(parts.policy.publish_weights(step), parts.pool.adopt_weights(step))
    return StepRecord(
        step=step,
        items=items,
        rollouts=rollouts,
        samples=samples,
        scores=scores,
        token_scores=token_scores,
        metrics=merge(*updates) | difference | published,
    )


def sample_requests(prompts: Sequence[Prompt], *, step: int, config: RunConfig) -> list[SampleRequest]:
    """Each prompt `samples_per_prompt` times in a row, each sample with its own seed."""
    return [
        SampleRequest(prompt=prompt.token_ids, seed=sample_seed(config.train.seed, step, position, sample))
        for position, prompt in enumerate(prompts)
        for sample in range(config.train.samples_per_prompt)
    ]


def sample_seed(seed: int, step: int, position: int, sample: int) -> int:
    """A 32-bit seed that depends on nothing else, so that engines and their number do not change a sample.

    `position` is the prompt's in the step: a prompt that a step draws twice is sampled anew.
    """
    return int(np.random.SeedSequence((seed, step, position, sample)).generate_state(1)[0])


def reward_items(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], decode: Callable[[Sequence[int]], str]
) -> list[RewardItem]:
    """The answers as text, with their prompts; every prompt has the same number of rollouts in a row."""
    size = len(rollouts) // len(prompts)
    return [
        RewardItem(
            prompt=prompts[index // size],
            response=decode(rollout.response),
            response_tokens=len(rollout.response),
            prompt_index=index // size,
            sample_index=index % size,
        )
        for index, rollout in enumerate(rollouts)
    ]


def with_advantages(rollouts: Sequence[Rollout], scores: Sequence[Score], config: RunConfig) -> list[Sample]:
    """Training samples in rollout order; a group is the samples of one prompt of the step."""
    size = config.train.samples_per_prompt
    advantages = compute_advantages(
        config.objective.advantage, [score.reward for score in scores], [i // size for i in range(len(scores))]
    )
    return [
        Sample(
            prompt=rollout.prompt,
            response=rollout.response,
            behavior_logp=rollout.behavior_logp,
            advantage=advantage,
        )
        for rollout, advantage in zip(rollouts, advantages, strict=True)
    ]
