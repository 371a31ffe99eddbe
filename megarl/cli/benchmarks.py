"""The benchmarks of `[eval]`, read and checked before a worker starts."""

import asyncio
import functools
from collections.abc import Sequence

from megarl.cli.inputs import ModelInputs, check_answers
from megarl.cli.loading import load_beside
from megarl.config.base import ConfigError
from megarl.config.evaluation import BenchmarkConfig, name_benchmark
from megarl.config.run import RunConfig
from megarl.controller.evaluating import Benchmark, Evaluator
from megarl.data.decoding import build_decode
from megarl.data.progress import Listener
from megarl.data.prompt_checks import check_own_texts
from megarl.rewards.pool import RewardPool, check_reward
from megarl.telemetry.console import Console

_TRIED_PROMPTS = 2


def load_benchmarks(config: RunConfig, model: ModelInputs, listen: Listener | None = None) -> list[Benchmark]:
    """Each with its prompts, all of which fit and whose ground truths its judge can read. ConfigError with everything
    that is wrong with any of them."""
    loaded: list[Benchmark] = []
    problems: list[str] = []
    for name, benchmark in config.eval.benchmarks.items():
        try:
            loaded.append(_load(name, benchmark, _as_read(config, benchmark), model, listen))
        except ConfigError as error:
            problems += (name_benchmark(text, name) for text in error.problems)
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return loaded


async def load_evaluator(config: RunConfig, model: ModelInputs, console: Console) -> Evaluator:
    """With the benchmarks of `load_benchmarks`, whose judges were tried and are started as training's verifier is."""
    benchmarks = await load_beside(functools.partial(load_benchmarks, config, model), console)
    await _try_judges(config, benchmarks)
    opening = functools.partial(_open_pool, config)
    return Evaluator(config, benchmarks, decode=build_decode(model.tokenizer), open_scorer=opening)


async def _try_judges(config: RunConfig, benchmarks: Sequence[Benchmark]) -> None:
    """Call users' functions on the first problems, as training does before it starts; ConfigError, RewardError."""
    for benchmark in benchmarks:
        if benchmark.config.judge.kind == "function":
            with await asyncio.to_thread(_open_pool, config, benchmark.config) as pool:
                await pool.try_out(benchmark.prompts[:_TRIED_PROMPTS])


def _load(
    name: str, benchmark: BenchmarkConfig, config: RunConfig, model: ModelInputs, listen: Listener | None
) -> Benchmark:
    check_reward(config.reward)
    check_own_texts(config.data, model.tokenizer)
    prompts = model.load_prompts(config, listen)
    return Benchmark(name=name, config=benchmark, prompts=check_answers(config, prompts, listen), digest=prompts.digest)


def _as_read(config: RunConfig, benchmark: BenchmarkConfig) -> RunConfig:
    """The configuration as if the benchmark were trained on: none of its problems is left out or cut."""
    instruction = config.data.instruction if benchmark.instruction is None else benchmark.instruction or None
    data = {"train": benchmark.data, "instruction": instruction, "overlong_prompts": "error"}
    reward = {
        "verifier": benchmark.judge,
        "unreadable_answers": "error",
        "correct_from": None,
        "wrong": None,
        "overlong": None,
        "truncated_factor": 1.0,
    }
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "reward": config.reward.model_copy(update=reward)}
    )


def _open_pool(config: RunConfig, benchmark: BenchmarkConfig) -> RewardPool:
    read = _as_read(config, benchmark)
    return RewardPool(read.reward, read.data, max_response_tokens=config.eval_tokens, seed=config.eval.seed)
