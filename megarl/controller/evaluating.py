"""Evaluation: every benchmark's problems in one pass over the engines, judged and kept as the answers come.

The engines are asked for all of it at once, so that none waits for the last answer to a small benchmark. A problem
whose answers are all there goes to the disk within `_KEEP_EVERY_S`; what is there is not asked again. Nothing here
draws from, or adds to, what training goes on with.
"""

import asyncio
import json
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megarl.config.evaluation import BenchmarkConfig
from megarl.config.run import RunConfig
from megarl.controller.arrivals import Arrivals, Decode
from megarl.controller.protocols import Arrived, Scorer
from megarl.controller.seeds import evaluation_seeds
from megarl.evaluation.answers import Answer, AnswersFile
from megarl.evaluation.summary import Answers, Summary, summarise
from megarl.records import Prompt, Rollout, SampleRequest, SamplingSettings, Score
from megarl.rewards.item import RewardItem
from megarl.rewards.stated import Judge, state_answer, states_answers
from megarl.telemetry.atomic_file import write_text_atomically
from megarl.telemetry.console import Phase

_KEEP_EVERY_S = 20.0
RESULTS = "results.json"
"""Beside the answers: every number of the evaluation."""

Ask = Callable[[Sequence[SampleRequest], Arrived], Awaitable[list[Rollout]]]
"""As `RolloutPool.generate`."""
OpenScorer = Callable[[BenchmarkConfig], AbstractContextManager[Scorer]]
"""Starts the processes that judge a benchmark's answers; blocks."""


class ShowsPhases(Protocol):
    """As `StepReporter` does."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[Phase]: ...


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One that can be asked."""

    name: str
    config: BenchmarkConfig
    prompts: Sequence[Prompt]
    digest: str
    """The same for the same problems, answers and tokens, and for no others."""


class Evaluator:
    """The benchmarks of one configuration, for as many evaluations as there are."""

    def __init__(
        self, config: RunConfig, benchmarks: Sequence[Benchmark], *, decode: Decode, open_scorer: OpenScorer
    ) -> None:
        self._config, self.benchmarks = config, benchmarks
        self._decode, self._open_scorer = decode, open_scorer

    def due(self, step: int) -> bool:
        """Whether a run is evaluated after `step`: before the first, every so many, and after the last."""
        every = self._config.eval.every_steps
        return every > 0 and (step % every == 0 or step == self._config.train.steps)

    def files(self, directory: Path, *, model: str) -> list[AnswersFile]:
        """Of every benchmark; model: names the weights, for those who compare."""
        return [
            AnswersFile(
                directory,
                one.name,
                {**answer_settings(self._config, one.name, model=model), "problems": one.digest},
            )
            for one in self.benchmarks
        ]

    async def evaluate(self, directory: Path, *, model: str, ask: Ask, reporter: ShowsPhases) -> list[Summary]:
        """The numbers of every benchmark, whose answers are in `directory` then, with all numbers in results.json.

        Goes on with what an evaluation has left there that was stopped. Raises what asking or judging raises.
        """
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        files = self.files(directory, model=model)
        with ExitStack() as scorers:
            asked = await asyncio.to_thread(self._open, files, scorers)
            await _run(asked, ask, reporter)
        summaries = await asyncio.to_thread(_summarise, files)
        results = {one.name: one.as_json() for one in summaries}
        text = json.dumps({"model": model, "benchmarks": results}, indent=2, allow_nan=False) + "\n"
        await asyncio.to_thread(write_text_atomically, directory / RESULTS, text)
        return summaries

    def _open(self, files: Sequence[AnswersFile], scorers: ExitStack) -> "list[_Asked]":
        """In a thread: the benchmarks that are not complete, their judges started; equal judges are one."""
        started: dict[str, Scorer] = {}
        asked = []
        for benchmark, file in zip(self.benchmarks, files, strict=True):
            if file.is_complete:
                continue
            judge = benchmark.config.judge
            data = benchmark.config.data if judge.only_source else None
            key = f"{judge!r} {data!r}"
            if key not in started:
                started[key] = scorers.enter_context(self._open_scorer(benchmark.config))
            asked.append(_Asked(benchmark, file, self._config, decode=self._decode, scorer=started[key]))
        return asked


def answer_settings(config: RunConfig, name: str, *, model: str) -> dict[str, Any]:
    """What determines the answers to a benchmark, beside its problems."""
    settings, benchmark = config.eval, config.eval.benchmarks[name]
    return {
        "model": model,
        "benchmark": name,
        "samples": settings.samples_of(benchmark),
        "seed": settings.seed,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": config.eval_tokens,
        "judge": benchmark.judge.model_dump(mode="json"),
        "votes": states_answers(benchmark.judge),
    }


class _Asked:
    """One benchmark's problems that are not answered yet, and its answers as they come."""

    def __init__(
        self, benchmark: Benchmark, file: AnswersFile, config: RunConfig, *, decode: Decode, scorer: Scorer
    ) -> None:
        self.file, self._benchmark, self._config = file, benchmark, config
        self._size = config.eval.samples_of(benchmark.config)
        answered = file.problems()
        self._prompts = [prompt for prompt in benchmark.prompts if prompt.index not in answered]
        self._arrivals = Arrivals(
            self._prompts,
            size=self._size,
            first=0,
            step=0,
            decode=decode,
            scorer=scorer,
            concluded=self._conclude,
        )
        self._rollouts: dict[int, Rollout] = {}
        self._concluded: list[_Problem] = []
        self._keeping = asyncio.Lock()

    def requests(self) -> list[SampleRequest]:
        """Each problem's samples in a row."""
        settings = self._config.eval
        sampling = SamplingSettings(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=self._config.eval_tokens
        )
        prompts = [prompt for prompt in self._prompts for _ in range(self._size)]
        seeds = evaluation_seeds(
            settings.seed,
            self._benchmark.name,
            [prompt.index for prompt in prompts],
            [*range(self._size)] * len(self._prompts),
        )
        return [
            SampleRequest(prompt=prompt.token_ids, seed=seed, settings=sampling)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def add(self, indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
        """These have come; on the event loop."""
        self._rollouts.update(zip(indexes, rollouts, strict=True))
        self._arrivals.add(indexes, rollouts)

    async def judge(self) -> None:
        """Return when all have come and are judged."""
        await self._arrivals.score()

    async def keep(self) -> None:
        """Write the problems that are done since the last call."""
        async with self._keeping:
            done, self._concluded = self._concluded, []
            if done:
                await asyncio.to_thread(self._write, done)

    def finish(self) -> None:
        """All are kept: make the file."""
        self.file.finish(problems=len(self._benchmark.prompts))

    def _conclude(self, number: int, items: Sequence[RewardItem], scores: Sequence[Score]) -> None:
        mine = range(number * self._size, (number + 1) * self._size)
        self._concluded.append((items, scores, [self._rollouts.pop(index) for index in mine]))

    def _write(self, done: "Sequence[_Problem]") -> None:
        judge = self._benchmark.config.judge
        self.file.add(
            [
                _answer(judge, item, score, rollout)
                for problem in done
                for item, score, rollout in zip(*problem, strict=True)
            ]
        )


_Problem = tuple[Sequence[RewardItem], Sequence[Score], list[Rollout]]
"""All samples of one."""


def _answer(judge: Judge, item: RewardItem, score: Score, rollout: Rollout) -> Answer:
    correct = bool(score.correct)
    return Answer(
        problem=item.prompt.index,
        sample=item.sample_index,
        prompt=item.prompt.text,
        truth=item.prompt.answer,
        text=item.response,
        tokens=len(rollout.response),
        truncated=item.truncated,
        correct=correct,
        score=score.verifier,
        failure=score.failure,
        answer=state_answer(judge, item, correct=correct),
        mean_logp=float(rollout.behavior_logp.mean(dtype=np.float64)) if len(rollout.response) else None,
    )


async def _run(asked: Sequence[_Asked], ask: Ask, reporter: ShowsPhases) -> None:
    """Ask, judge and keep, side by side. What fails ends the others; what is done is kept all the same."""
    requests = await asyncio.to_thread(lambda: [one.requests() for one in asked])
    starts = [sum(map(len, requests[:number])) for number in range(len(asked))]
    with reporter.phase("eval", sum(map(len, requests))) as shown:

        def arrived(indexes: Sequence[int], rollouts: Sequence[Rollout]) -> None:
            of_benchmark: dict[int, list[tuple[int, Rollout]]] = {}
            for index, rollout in zip(indexes, rollouts, strict=True):
                number = bisect_right(starts, index) - 1
                of_benchmark.setdefault(number, []).append((index - starts[number], rollout))
            for number, come in of_benchmark.items():
                asked[number].add(*map(list, zip(*come, strict=True)))
            shown.advance(len(indexes))

        try:
            async with asyncio.TaskGroup() as working:
                keeping = working.create_task(_keep_now_and_then(asked))
                async with asyncio.TaskGroup() as answering:
                    for one in asked:
                        answering.create_task(one.judge())
                    if every := [request for of_one in requests for request in of_one]:
                        answering.create_task(_await(ask(every, arrived)))
                keeping.cancel()
        except ExceptionGroup as failed:
            first = _first(failed)
            raise first from first.__cause__
        finally:
            for one in asked:
                await one.keep()
    for one in asked:
        await asyncio.to_thread(one.finish)


async def _await(answering: Awaitable[list[Rollout]]) -> None:
    await answering


async def _keep_now_and_then(asked: Sequence[_Asked]) -> None:
    while True:
        await asyncio.sleep(_KEEP_EVERY_S)
        for one in asked:
            await asyncio.shield(one.keep())


def _first(failed: BaseException) -> BaseException:
    """The first failure of a group, which may be of groups."""
    return _first(failed.exceptions[0]) if isinstance(failed, BaseExceptionGroup) else failed


def _summarise(files: Sequence[AnswersFile]) -> list[Summary]:
    return [summarise(Answers.read(file.path)) for file in files]
