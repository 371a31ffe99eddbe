"""Sizes and grids of `megarl theory`, the numerical study of arXiv 2509.26114's theorems; no model and no data."""

import math
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, Unbounded, raise_problems

_MOST_NUMBERS = 100_000_000
"""float64 numbers of one table of probabilities: 0.8 GB, of which a few exist at a time."""


class PairsConfig(Config):
    """Random pairs of policies at one state: old logits normal, current = old + normal drift."""

    count: int = Field(1000, ge=2)
    """Pairs."""
    vocabulary: int = Field(30, ge=2)
    """Actions."""
    old_scale: float = Field(2.0, gt=0)
    """Standard deviation of the old logits: larger is a more peaked policy."""
    drift: float = Field(0.5, gt=0)
    """Standard deviation of what is added to each logit."""


class TheoryClipConfig(Config):
    """The bounds of the step-size study."""

    low: float = Field(0.2, ge=0, le=1)
    """X = {r < 1 - low}; 1.0 turns clip-low off."""
    high: Unbounded = Field(0.2, ge=0)
    """Y = {r > 1 + high}; inf turns clip-high off."""


class TheorySweepConfig(Config):
    """The bounds of the sweep, and the size of its steps."""

    low: list[float] = Field([0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0], min_length=1)
    """Values of low, each in [0, 1]; 1.0 is off."""
    high: list[Unbounded] = Field([0.05, 0.1, 0.2, 0.28, 0.5, 1.0, math.inf], min_length=1)
    """Values of high, each >= 0; inf is off."""
    learning_rate: float = Field(0.02, gt=0)
    """eta of the measured steps; small, so that the first order shows."""


class MonteCarloConfig(Config):
    """Sampled groups with Bernoulli rewards and the group mean as baseline."""

    states: int = Field(40_000, ge=100)
    """Independent states, each with one group."""
    vocabulary: int = Field(12, ge=2)
    """Actions."""
    group: int = Field(8, ge=2)
    """Samples per state."""
    reward_probability: float = Field(0.5, gt=0, lt=1)
    """Of reward 1."""
    learning_rate: float = Field(0.2, gt=0)
    """The larger of the two step sizes from which the first-order coefficient is extrapolated."""
    clips: list[list[Unbounded]] = Field(
        [[0.2, 0.2], [0.2, math.inf], [1.0, 0.2], [0.1, math.inf], [1.0, 0.1], [0.2, 0.28], [1.0, math.inf]],
        min_length=1,
    )
    """Pairs [low, high]; [1.0, inf] is no clip."""


class MultiStepConfig(Config):
    """Training a small softmax with shared features on random rewards, against a control without clip bias."""

    rollouts: int = Field(100, ge=0)
    """Batches of samples; 0 leaves this study out."""
    seeds: int = Field(8, ge=2)
    """Independent trainings per clip."""
    vocabulary: int = Field(64, ge=2)
    """Actions."""
    features: int = Field(24, ge=1)
    """Dimension of a prompt's features."""
    prompts: int = Field(128, ge=1)
    """Prompts; each is sampled in every rollout."""
    group: int = Field(8, ge=2)
    """Samples per prompt."""
    updates_per_rollout: int = Field(16, ge=1)
    """Mini-batches per rollout: with 1 the ratio is always 1 and nothing is clipped."""
    weight_scale: float = Field(0.6, gt=0)
    """Standard deviation of the initial weights: larger is a lower initial entropy."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam without weight decay, or plain gradient ascent."""
    learning_rate: float = Field(0.01, gt=0)
    """Of the optimizer."""
    clips: list[list[Unbounded]] = Field(
        [[0.2, math.inf], [0.1, math.inf], [1.0, 0.2], [1.0, 0.1], [0.2, 0.2]], min_length=1
    )
    """Pairs [low, high]."""


class TheoryConfig(Config):
    """Everything `megarl theory` computes; every field has a default."""

    seed: int = Field(0, ge=0)
    """Seeds every random number."""
    learning_rates: list[float] = Field([0.4, 0.2, 0.1, 0.05, 0.025, 0.0125], min_length=2)
    """Step sizes of the remainder, falling."""
    pairs: PairsConfig = PairsConfig()
    clip: TheoryClipConfig = TheoryClipConfig()
    sweep: TheorySweepConfig = TheorySweepConfig()
    monte_carlo: MonteCarloConfig = MonteCarloConfig()
    multi_step: MultiStepConfig = MultiStepConfig()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        return raise_problems(self, (_check_learning_rates, _check_bounds, _check_sizes))


def _check_learning_rates(config: TheoryConfig) -> Iterator[str]:
    rates = config.learning_rates
    if not all(0 < rate < math.inf for rate in rates) or sorted(set(rates), reverse=True) != rates:
        yield f"learning_rates: expected positive numbers that fall, found {rates}"


def _check_bounds(config: TheoryConfig) -> Iterator[str]:
    for low in config.sweep.low:
        if not 0 <= low <= 1:
            yield f"sweep.low: expected numbers in [0, 1] (1.0 is off), found {low:g}"
    for high in config.sweep.high:
        if not high >= 0:
            yield f"sweep.high: expected numbers >= 0 (inf is off), found {high:g}"
    for name, clips in (("monte_carlo", config.monte_carlo.clips), ("multi_step", config.multi_step.clips)):
        for clip in clips:
            if len(clip) != 2 or not 0 <= clip[0] <= 1 or not clip[1] >= 0:
                yield f"{name}.clips: expected pairs [low, high], low in [0, 1] and high >= 0, found {clip}"


def _check_sizes(config: TheoryConfig) -> Iterator[str]:
    pairs, monte_carlo, multi_step = config.pairs, config.monte_carlo, config.multi_step
    sizes = {
        "pairs.count x vocabulary": pairs.count * pairs.vocabulary,
        "monte_carlo.states x vocabulary": monte_carlo.states * monte_carlo.vocabulary,
        "multi_step.seeds x prompts x vocabulary": multi_step.seeds * multi_step.prompts * multi_step.vocabulary,
    }
    for name, size in sizes.items():
        if size > _MOST_NUMBERS:
            yield f"{name} is {size:,} numbers; expected at most {_MOST_NUMBERS:,}, make one of them smaller"
    samples = multi_step.prompts * multi_step.group
    if samples % multi_step.updates_per_rollout:
        yield (
            f"multi_step.prompts {multi_step.prompts} x group {multi_step.group} = {samples} samples are not a "
            f"multiple of updates_per_rollout {multi_step.updates_per_rollout}"
        )
