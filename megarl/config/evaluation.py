"""Benchmarks: which problems, how answers to them are sampled and judged, and when a run is evaluated on them."""

import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from megarl.config.base import Config, raise_problems
from megarl.config.data import FileData, ReasoningGymData
from megarl.config.facts import join_or, tags_where
from megarl.config.reward import (
    FunctionReward,
    Gsm8kReward,
    MathVerifyReward,
    ReasoningGymReward,
    Verifier,
)

_NAME = re.compile(r"[A-Za-z0-9_-]+")

JudgingVerifier = Annotated[
    MathVerifyReward | Gsm8kReward | ReasoningGymReward | FunctionReward, Field(discriminator="kind")
]
"""Those that look at the answer."""


class BenchmarkFile(FileData):
    """Problems from files, or from a data set on the Hugging Face hub, as data.train has them."""

    split: str = "test"
    """Split of a hub data set, or of a directory whose files or directories are named after splits."""


class BenchmarkConfig(Config):
    """One benchmark: `[eval.benchmarks.NAME]`. Prompts are rendered as training's are (`[data]`)."""

    data: Annotated[ReasoningGymData | BenchmarkFile, Field(discriminator="source")]
    verifier: JudgingVerifier | None = None
    """Who judges an answer, as reward.verifier; what it gives from 1 on is correct. Default: gsm8k (the last number)
    for layout "gsm8k", reasoning_gym for its tasks, else math_verify."""
    samples: int | None = Field(None, ge=1)
    """Responses per problem; default: eval.samples."""
    instruction: str | None = None
    """Appended to the user's message in place of data.instruction; "" appends nothing."""

    @property
    def judge(self) -> MathVerifyReward | Gsm8kReward | ReasoningGymReward | FunctionReward:
        """The verifier, the default included."""
        if self.verifier is not None:
            return self.verifier
        match self.data:
            case ReasoningGymData():
                return ReasoningGymReward(kind="reasoning_gym")
            case BenchmarkFile(layout="gsm8k"):
                return Gsm8kReward(kind="gsm8k")
        return MathVerifyReward(kind="math_verify")


class EvalConfig(Config):
    """Evaluation on benchmarks, by `megarl eval` and inside a run, with the settings of arXiv 2509.26114.

    Every sample has a seed of its own, from eval.seed, the benchmark's name, problem and sample: two models, or two
    steps of a run, are compared on the same draws.
    """

    every_steps: int = Field(0, ge=0)
    """Evaluate a run before its first step, after every so many steps and after its last, on its own engines with the
    weights they have; 0: never. Training is the same with and without."""
    samples: int = Field(8, ge=1)
    """n, responses per problem: pass@k and maj@k are given for k up to n."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Sample from the fewest most probable tokens that have this probability together; 1: from all. Training has none:
    its ratios would be wrong."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest response; default and most: rollout.max_response_tokens, for which the engines are made."""
    seed: int = Field(0, ge=0)
    """Seeds the samples."""
    benchmarks: dict[str, BenchmarkConfig] = {}
    """By name, a table each: `[eval.benchmarks.math500]`; eval.benchmarks.math500=false leaves one out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return raise_problems(self, (_check_names, _check_any, _check_judges))

    def samples_of(self, benchmark: BenchmarkConfig) -> int:
        """n of one benchmark."""
        return self.samples if benchmark.samples is None else benchmark.samples


def name_benchmark(text: str, name: str) -> str:
    """A message about data.train or reward.verifier that is about this benchmark's: it names that instead."""
    where = f"eval.benchmarks.{name}"
    text = text.replace("data.train.", f"{where}.data.").replace("reward.verifier", f"{where}.verifier")
    return text if where in text else f"{where}: {text}"


def _check_names(config: EvalConfig) -> Iterator[str]:
    for name in config.benchmarks:
        if not _NAME.fullmatch(name):
            yield (
                f'eval.benchmarks: expected names of letters, digits, "_" and "-", found "{name}"; metrics and files '
                "are named after them"
            )


def _check_any(config: EvalConfig) -> Iterator[str]:
    if config.every_steps and not config.benchmarks:
        yield (
            f"eval.every_steps {config.every_steps} evaluates a run, but there is no benchmark; add a table "
            "[eval.benchmarks.NAME] (configs/benchmarks/ has some), or set it to 0"
        )


def _check_judges(config: EvalConfig) -> Iterator[str]:
    for name, benchmark in config.benchmarks.items():
        judge, source = benchmark.judge, benchmark.data.source
        if judge.only_source not in (None, source):
            others = join_or(tags_where(Verifier, looks_at_answer=True, only_source=None))
            yield (
                f'eval.benchmarks.{name}.verifier.kind = "{judge.kind}" judges only data.source = '
                f'"{judge.only_source}", found "{source}"; use {others}'
            )
