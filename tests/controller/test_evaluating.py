"""Evaluations with parts that only note what is asked of them: draws, what is kept, gone on with, and left alone."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megarl.config.evaluation import BenchmarkConfig
from megarl.config.run import RunConfig
from megarl.controller import evaluating
from megarl.controller.evaluating import RESULTS, Benchmark, Evaluator
from megarl.controller.progress import RunProgress
from megarl.controller.protocols import Arrived
from megarl.evaluation.answers import read_answers
from megarl.evaluation.summary import Summary
from megarl.records import Prompt, Rollout, SampleRequest, SamplingSettings
from megarl.rewards.item import RewardItem, Verdict
from megarl.telemetry.metrics import to_values
from tests.controller.fakes import Recorder, Scores, make_config, make_parts, run

DATA = {"source": "reasoning_gym", "task": "chain_sum", "seed": 20_000}


def evaluated(every_steps: int = 0, **train: Any) -> RunConfig:
    """Two benchmarks: three problems twice, and two problems three times."""
    config = make_config(**train).model_dump(exclude_none=True)
    settings = {
        "every_steps": every_steps,
        "samples": 2,
        "top_p": 0.9,
        "max_tokens": 8,
        "benchmarks": {"one": {"data": DATA}, "two": {"data": DATA, "samples": 3}},
    }
    return RunConfig.model_validate(config | {"eval": settings})


def prompts_of(name: str, count: int) -> list[Prompt]:
    first = 10 if name == "one" else 20
    return [Prompt(index=i, text=f"{name}{i}", token_ids=(first + i,), answer="7 8") for i in range(count)]


class Asked:
    """Engines and judges of evaluations: right is a response to an even problem, or a problem's first sample."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []
        self.started: list[str] = []
        self.ended = 0

    async def ask(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        self.requests += requests
        rollouts = [self.answer(request) for request in requests]
        for index in reversed(range(len(requests))):  # the last first
            arrived([index], [rollouts[index]])
            await asyncio.sleep(0)
        return rollouts

    def answer(self, request: SampleRequest) -> Rollout:
        return Rollout(
            prompt=request.prompt, response=(7, 8), behavior_logp=(-1.0, -3.0), stop_reason="stop", policy_version=0
        )

    @contextmanager
    def open_scorer(self, benchmark: BenchmarkConfig) -> Iterator[Scores]:
        self.started.append(benchmark.judge.kind)
        recorder = Recorder(verify=lambda item: float(item.prompt.index % 2 == 0 or item.sample_index == 0))
        yield Scores(recorder)
        self.ended += 1

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Recorder]:
        yield Recorder()


def make_evaluator(config: RunConfig, asked: Any) -> Evaluator:
    benchmarks = [
        Benchmark(name=name, config=one, prompts=prompts_of(name, 3 if name == "one" else 2), digest=f"digest {name}")
        for name, one in config.eval.benchmarks.items()
    ]
    return Evaluator(
        config,
        benchmarks,
        decode=lambda responses: [" ".join(map(str, ids)) for ids in responses],
        open_scorer=asked.open_scorer,
    )


def evaluate(directory: Path, asked: Any, config: RunConfig | None = None) -> list[Summary]:
    evaluator = make_evaluator(config or evaluated(), asked)
    return asyncio.run(evaluator.evaluate(directory, model="m", ask=asked.ask, reporter=asked))


def test_all_benchmarks_are_asked_at_once_with_their_settings(tmp_path: Path) -> None:
    asked = Asked()
    one, two = evaluate(tmp_path, asked)
    assert [request.prompt for request in asked.requests] == [(10,)] * 2 + [(11,)] * 2 + [(12,)] * 2 + [(20,)] * 3 + [
        (21,)
    ] * 3
    assert len({request.seed for request in asked.requests}) == 12
    settings = SamplingSettings(temperature=1.0, top_p=0.9, max_tokens=8)
    assert {request.settings for request in asked.requests} == {settings}
    # Problems 0 and 2 are always right, problem 1 with its first sample.
    assert one.measures["mean@2"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert two.measures["mean@3"].value == pytest.approx((1 + 1 / 3) / 2)
    assert (one.entropy, one.length_mean, one.truncated) == (2.0, 2.0, 0.0)
    # Equal judges are one, and it has ended.
    assert (asked.started, asked.ended) == (["reasoning_gym"], 1)


def test_answers_and_numbers_are_kept(tmp_path: Path) -> None:
    evaluate(tmp_path, Asked())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet", RESULTS, "two.parquet"]
    rows = read_answers(tmp_path / "two.parquet").to_pylist()
    assert [(row["problem"], row["sample"], row["correct"]) for row in rows] == [
        (0, 0, True), (0, 1, True), (0, 2, True), (1, 0, True), (1, 1, False), (1, 2, False),
    ]  # fmt: skip
    assert rows[0] | {"correct": None} == {
        "problem": 0, "sample": 0, "prompt": "two0", "truth": "7 8", "text": "7 8", "tokens": 2, "truncated": False,
        "correct": None, "score": 1.0, "failure": None, "answer": "7 8", "mean_logp": -2.0,
    }  # fmt: skip
    results = json.loads((tmp_path / RESULTS).read_text())
    assert results["benchmarks"]["one"]["mean@2"]["value"] == pytest.approx(5 / 6)


def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    evaluate(tmp_path, Asked())
    again = Asked()
    summaries = evaluate(tmp_path, again)
    assert (again.requests, again.started) == ([], [])
    assert summaries[1].measures["mean@3"].value == pytest.approx(2 / 3)


class Stopped(Asked):
    """Its engines fail when the problems of the second benchmark and the last of the first have been answered."""

    async def ask(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        self.requests += requests
        arrived([*range(3, 12)], [self.answer(request) for request in requests[3:12]])
        await asyncio.sleep(0.3)  # until they are judged
        raise OSError("the engine is gone")


def test_an_evaluation_that_was_stopped_goes_on_with_the_same_draws(tmp_path: Path) -> None:
    whole = Asked()
    evaluate(tmp_path / "whole", whole)
    with pytest.raises(OSError, match="the engine is gone"):
        evaluate(tmp_path / "stopped", Stopped())
    rest = Asked()
    evaluate(tmp_path / "stopped", rest)
    # Problem 1 had one of its two answers, which is asked again with the other.
    assert rest.requests == whole.requests[:4]
    for name in ("one", "two"):
        assert read_answers(tmp_path / "stopped" / f"{name}.parquet").equals(
            read_answers(tmp_path / "whole" / f"{name}.parquet")
        )


def test_answers_are_kept_while_others_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "_KEEP_EVERY_S", 0.01)
    kept: list[int] = []

    class Slow(Asked):
        async def ask(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
            rollouts = [self.answer(request) for request in requests]
            arrived([*range(4)], rollouts[:4])
            while not (parts := list((tmp_path / "one.parts").glob("*.parquet"))):
                await asyncio.sleep(0.01)
            kept.append(len(parts))
            arrived([*range(4, 12)], rollouts[4:])
            return rollouts

    evaluate(tmp_path, Slow())
    assert kept == [1]
    assert len(read_answers(tmp_path / "one.parquet")) == 6


def test_a_disk_that_takes_no_answers_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "_KEEP_EVERY_S", 0.01)

    class Endless(Asked):
        async def ask(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
            arrived([*range(4)], [self.answer(request) for request in requests[:4]])
            await asyncio.sleep(60)
            raise AssertionError("it was not ended")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(evaluating.AnswersFile, "add", fail)
    with pytest.raises(OSError, match="no space left"):
        evaluate(tmp_path, Endless())


def test_a_failing_judge_ends_it_with_its_own_error(tmp_path: Path) -> None:
    class Failing(Asked):
        @contextmanager
        def open_scorer(self, benchmark: BenchmarkConfig) -> Iterator[Scores]:
            class Judge(Recorder):
                async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
                    raise ValueError("cannot judge")

            yield Scores(Judge())
            self.ended += 1

    asked = Failing()
    with pytest.raises(ValueError, match="cannot judge"):
        evaluate(tmp_path, asked)


# ---------------------------------------------------------------------------------------------------- inside a run


class Trained(Recorder):
    """Also evaluated; knows which weights the engines had at each request of an evaluation."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.evaluations = directory
        self.asked = Asked()
        self.versions: list[int] = []

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        if requests[0].settings is None:
            return await super().generate(requests, arrived)
        self.calls.append("evaluate")
        self.versions.append(self.policy_version)
        return await self.asked.ask(requests, arrived)


def test_a_run_is_evaluated_at_its_start_in_between_and_at_its_end(tmp_path: Path) -> None:
    config, recorder = evaluated(every_steps=2, steps=3), Trained(tmp_path)
    run(config, recorder, evaluator=make_evaluator(config, recorder.asked))
    assert [call for call in recorder.calls if call.startswith(("evaluate", "start", "adopt", "commit"))] == [
        *("evaluate", "start measured"),
        *("adopt 1", "commit 1"),
        *("adopt 2", "evaluate", "commit 2"),
        *("adopt 3", "evaluate", "commit 3"),
    ]
    assert recorder.versions == [0, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000", "step-000002", "step-000003"]
    assert recorder.start["eval/one/mean@2"] == pytest.approx(5 / 6)
    names = [{name for name in record.metrics if name.startswith("eval/")} for record in recorder.records]
    assert [len(found) for found in names] == [0, 18, 18]
    assert names[1] == set(recorder.start)
    assert len([note for note in recorder.notes if note.startswith("eval   step ")]) == 6


def test_training_is_the_same_with_and_without_evaluation(tmp_path: Path) -> None:
    config, recorder, plain = evaluated(every_steps=1, steps=3), Trained(tmp_path), Recorder()
    run(config, recorder, evaluator=make_evaluator(config, recorder.asked))
    run(make_config(steps=3), plain)
    assert recorder.requests == plain.requests
    assert [request.seed for request in recorder.requests] == [request.seed for request in plain.requests]
    assert [call for call in recorder.calls if call not in ("evaluate", "start measured")] == plain.calls
    assert [progress.owners for progress in recorder.reached] == [progress.owners for progress in plain.reached]
    for with_it, without in zip(recorder.records, plain.records, strict=True):
        trained = {name: value for name, value in to_values(with_it.metrics).items() if not name.startswith("eval/")}
        assert {name: value for name, value in trained.items() if not _is_time(name)} == {
            name: value for name, value in to_values(without.metrics).items() if not _is_time(name)
        }
        assert with_it.samples == without.samples


def _is_time(name: str) -> bool:
    return name.startswith(("timing_s/", "perf/"))


def test_a_run_that_goes_on_is_not_evaluated_twice(tmp_path: Path) -> None:
    config, whole = evaluated(every_steps=2, steps=4), Trained(tmp_path / "whole")
    run(config, whole, evaluator=make_evaluator(config, whole.asked))
    rest = Trained(tmp_path / "rest")
    run(config, rest, progress=whole.reached[1], evaluator=make_evaluator(config, rest.asked))
    assert sorted(path.name for path in rest.evaluations.iterdir()) == ["step-000004"]
    assert rest.asked.requests == whole.asked.requests[:12]
    assert to_values(rest.records[-1].metrics)["eval/two/pass@2"] == pytest.approx(
        to_values(whole.records[-1].metrics)["eval/two/pass@2"]
    )
    # One that has begun with other weights, and finished no step, is measured at its start.
    begun = Trained(tmp_path / "begun")
    start = RunProgress.collect(make_parts(config, Recorder()).owners, step=0, policy_version=0)
    run(config, begun, progress=start, evaluator=make_evaluator(config, begun.asked))
    assert begun.calls[begun.calls.index("adopt 0") + 1] == "evaluate"
    assert (begun.evaluations / "step-000000").is_dir()
