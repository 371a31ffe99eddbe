"""Plug point 1: which prompts a step samples and which groups it trains on.

A step draws prompts one after the other; `position` numbers them over all its rounds of generation. Seeds and random
rewards are keyed by it, so a prompt's responses do not depend on how many prompts a round takes, nor on the engines.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from megarl.config.advantage import AllGroups, DynamicSampling
from megarl.config.run import RunConfig
from megarl.controller.arrivals import Arrivals
from megarl.controller.cut_off import describe_cut_off
from megarl.controller.parts import Parts
from megarl.controller.regeneration import generate
from megarl.controller.seeds import sample_seeds
from megarl.objective.advantage import compute_perplexity_bonus
from megarl.objective.schedules import perplexity_omega
from megarl.records import Prompt, Rollout, SampleRequest, Score
from megarl.rewards.item import RewardItem
from megarl.telemetry.metrics import Metrics, declared


class SamplingExhaustedError(RuntimeError):
    """Dynamic sampling found too few groups with different scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The scored responses to one prompt of a step."""

    position: int
    """Of the prompt among those the step drew."""
    prompt: Prompt
    items: tuple[RewardItem, ...]
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]

    @property
    def has_spread(self) -> bool:
        """Some responses are correct and some are not; where the verifier knows no right and wrong: its numbers differ.

        Wrong answers that differ in partial credit have none: there is nothing right to learn from them.
        """
        return len({score.verifier if score.correct is None else score.correct for score in self.scores}) > 1


async def sample_groups(step: int, config: RunConfig, parts: Parts) -> tuple[list[Group], Metrics]:
    """The train.prompts_per_step groups of a step, by position, and what sampling them took.

    SamplingExhaustedError where objective.sampler says so.
    """
    wanted = config.train.prompts_per_step
    match config.objective.sampler:
        case AllGroups():
            groups = await _sample_round(wanted, first=0, step=step, config=config, parts=parts)
            return groups, _bonus_metrics(groups, step=step, config=config)
        case DynamicSampling() as sampler:
            drawn: list[Group] = []
            generations = 0
            while _count_kept(drawn) < wanted and generations < sampler.max_generations:
                count = sampler.prompts_per_generation or wanted
                drawn += await _sample_round(count, first=len(drawn), step=step, config=config, parts=parts)
                generations += 1
            groups = select_groups(drawn, wanted=wanted, sampler=sampler, step=step)
            metrics = _sampling_metrics(drawn, generations) | _bonus_metrics(groups, step=step, config=config)
            return groups, metrics
    assert_never(config.objective.sampler)


def select_groups(drawn: Sequence[Group], *, wanted: int, sampler: DynamicSampling, step: int) -> list[Group]:
    """The first `wanted` groups with spread, in the order drawn; what is over is dropped.

    With too few of them, "fill" takes the first of the others too, all in the order drawn.

    Raises:
        SamplingExhaustedError: too few, and when_exhausted is "stop".
    """
    kept = [group for group in drawn if group.has_spread][:wanted]
    if len(kept) == wanted:
        return kept
    if sampler.when_exhausted == "stop":
        raise SamplingExhaustedError(_describe_exhaustion(drawn, len(kept), wanted=wanted, sampler=sampler, step=step))
    others = [group for group in drawn if not group.has_spread]
    return sorted(kept + others[: wanted - len(kept)], key=lambda group: group.position)


def sample_requests(prompts: Sequence[Prompt], *, step: int, config: RunConfig, first: int = 0) -> list[SampleRequest]:
    """Each prompt `samples_per_prompt` times in a row, each sample with its own seed; `first` is the first prompt's
    position in the step."""
    size = config.train.samples_per_prompt
    numbers = [number for number in range(len(prompts)) for _ in range(size)]
    positions, samples = [first + number for number in numbers], [*range(size)] * len(prompts)
    seeds = sample_seeds(config.train.seed, step, positions, samples)
    return [
        SampleRequest(prompt=prompts[number].token_ids, seed=seed) for number, seed in zip(numbers, seeds, strict=True)
    ]


async def _sample_round(count: int, *, first: int, step: int, config: RunConfig, parts: Parts) -> list[Group]:
    """Draw, generate and score `count` prompts; the first one's position is `first`."""
    prompts = [parts.prompts[index] for index in parts.sampler.draw(count)]
    size = config.train.samples_per_prompt
    arrivals = Arrivals(prompts, size=size, first=first, step=step, decode=parts.decode, scorer=parts.scorer)
    scoring = asyncio.create_task(arrivals.score())
    try:
        rollouts = await _generate(prompts, arrivals, scoring, first=first, step=step, config=config, parts=parts)
        with parts.reporter.phase("reward"):
            scored = await scoring
    finally:
        scoring.cancel()
        await asyncio.gather(scoring, return_exceptions=True)
    verified = [score for _, scores in scored for score in scores]
    scores = await asyncio.to_thread(_add_bonus, verified, rollouts, step=step, config=config)
    return [
        Group(
            position=first + number,
            prompt=prompt,
            items=tuple(scored[number][0]),
            rollouts=tuple(rollouts[number * size : (number + 1) * size]),
            scores=tuple(scores[number * size : (number + 1) * size]),
        )
        for number, prompt in enumerate(prompts)
    ]


async def _generate(
    prompts: Sequence[Prompt],
    arrivals: Arrivals,
    scoring: "asyncio.Task[Any]",
    *,
    first: int,
    step: int,
    config: RunConfig,
    parts: Parts,
) -> list[Rollout]:
    """Sample the responses, handing each on as it comes. A failure of the scoring beside it ends it at once."""
    requests = await asyncio.to_thread(sample_requests, prompts, step=step, config=config, first=first)
    with parts.reporter.phase("generate", total=len(requests)) as phase:

        def arrived(indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
            arrivals.add(indexes, rollouts)
            phase.advance(len(indexes))

        generating = asyncio.ensure_future(generate(requests, arrived, parts, rounds=config.rollout.restarts))
        try:
            await asyncio.wait({generating, scoring}, return_when=asyncio.FIRST_COMPLETED)
            if scoring.done():
                scoring.result()
            rollouts = await generating
        finally:
            generating.cancel()
            await asyncio.gather(generating, return_exceptions=True)
    if (step, first) == (1, 0) and (
        warning := await asyncio.to_thread(
            describe_cut_off, rollouts, parts.stops, limit=config.rollout.max_response_tokens
        )
    ):
        parts.reporter.warn(warning)
    return rollouts


def _add_bonus(
    scores: Sequence[Score], rollouts: Sequence[Rollout], *, step: int, config: RunConfig
) -> Sequence[Score]:
    bonus = config.objective.shaping.perplexity
    if bonus is None:
        return scores
    omega = perplexity_omega(bonus, step=step)
    earned = [
        compute_perplexity_bonus(bonus, _earning_reward(score), rollout.behavior_logp, omega=omega)
        for score, rollout in zip(scores, rollouts, strict=True)
    ]
    return [
        replace(score, reward=score.reward + amount, bonus=amount) for score, amount in zip(scores, earned, strict=True)
    ]


def _earning_reward(score: Score) -> float:
    """The reward that CDE's bonus is a share of: the verdict's, without the overlong penalty, and without the partial
    credit of an answer that is not correct."""
    kept = score.reward - score.overlong
    return min(kept, 0.0) if score.correct is False else kept


def _bonus_metrics(groups: Sequence[Group], *, step: int, config: RunConfig) -> Metrics:
    bonus = config.objective.shaping.perplexity
    if bonus is None:
        return {}
    return declared(
        {
            "shaping/perplexity_bonus_mean": (score.bonus for group in groups for score in group.scores),
            "shaping/perplexity_omega": perplexity_omega(bonus, step=step),
        }
    )


def _sampling_metrics(drawn: Sequence[Group], generations: int) -> Metrics:
    return declared(
        {
            "sampler/generations": generations,
            "sampler/generated_groups": len(drawn),
            "sampler/kept_groups": _count_kept(drawn),
            "sampler/reward_mean_all": (score.reward for group in drawn for score in group.scores),
        }
    )


def _count_kept(drawn: Sequence[Group]) -> int:
    return sum(group.has_spread for group in drawn)


def _describe_exhaustion(drawn: Sequence[Group], kept: int, *, wanted: int, sampler: DynamicSampling, step: int) -> str:
    equal = Counter(_describe_verdict(group.scores[0]) for group in drawn if not group.has_spread)
    dropped = ", ".join(f"{count} {verdict}" for verdict, count in equal.most_common(3))
    return (
        f"step {step}: after {sampler.max_generations} rounds of generation only {kept} of the {wanted} groups of a "
        f"step have both correct and wrong responses; of {len(drawn)} groups generated, {dropped}. Choose prompts that "
        "are neither too hard nor too easy for this model, lower reward.correct_from where the verifier gives right "
        "answers less, raise objective.sampler.max_generations or prompts_per_generation, or "
        'set objective.sampler.when_exhausted = "fill" to train on groups without spread too'
    )


def _describe_verdict(score: Score) -> str:
    if score.correct is None:
        return f"have {score.verifier:g} throughout"
    return "are all correct" if score.correct else "are all wrong"
