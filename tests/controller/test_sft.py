"""The warm start: what it trains on, where its loss comes from, and how it goes on."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.controller.progress import RunProgress
from megarl.controller.sft import fine_tune
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import MiniBatch
from megarl.telemetry.metrics import Mean
from megarl.telemetry.spans import Spans
from tests.controller.fakes import make_config

PAIRS = [((1, 2), (7, 8)), ((3,), (9,))]


class Recorder:
    """Policy and reporter of a warm start."""

    def __init__(self) -> None:
        self.spans = Spans()
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.answers: list[list[int]] = []
        self.calls: list[str] = []
        self.reached: list[RunProgress] = []

    async def sft_update(self, shards: Sequence[MiniBatch]) -> UpdateResult:
        targets = [batch.to("cpu").target_R.tolist() for mini in shards for batch in mini]
        self.answers.append(sorted(token for tokens in targets for token in tokens))
        # The logged log-prob is another than the one that is meant: a loss is not made of what is logged.
        return UpdateResult(logp=Mean(-6.0, 3.0), kl=Mean(), metrics={"actor/logp": Mean(-1e9, 1.0)})

    def report_sft(self, step: int, *, loss: float, metrics: Any, num_tokens: int) -> None:
        self.losses.append(loss)
        self.tokens.append(num_tokens)

    async def export_hf(self, path: str) -> None:
        self.calls.append(f"export {path}")

    def export_path(self, step: int) -> str:
        return f"hf-{step}"

    def commit(self, progress: RunProgress) -> None:
        self.calls.append(f"commit {progress.step}")
        self.reached.append(progress)

    async def settle(self) -> None:
        self.calls.append("settle")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def configure(*, steps: int, batch_examples: int) -> RunConfig:
    config = make_config()
    return config.model_validate(config.model_dump() | {"sft": {"steps": steps, "batch_examples": batch_examples}})


def tune(config: RunConfig, pairs: Sequence[Any], progress: RunProgress | None = None) -> Any:
    recorder: Any = Recorder()
    asyncio.run(
        fine_tune(config, config.sft, policy=recorder, pairs=pairs, reporter=recorder, progress=progress)  # type: ignore[arg-type]
    )
    return recorder


def test_the_loss_is_the_answers_cross_entropy() -> None:
    recorder = tune(configure(steps=2, batch_examples=2), PAIRS)
    assert recorder.losses == [2.0, 2.0]
    assert recorder.tokens == [6, 6]


def test_a_step_is_finished_when_all_it_leaves_is_there() -> None:
    recorder = tune(configure(steps=2, batch_examples=2), PAIRS)
    assert recorder.calls == ["commit 1", "settle", "export hf-2", "commit 2", "settle"]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_warm_start_goes_on_exactly(stop: int) -> None:
    pairs = [((1, index), (10 + index,)) for index in range(5)]
    config = configure(steps=5, batch_examples=3)
    straight = tune(config, pairs)
    assert len({tuple(answers) for answers in straight.answers}) > 3
    second = tune(config, pairs, progress=straight.reached[stop - 1])
    assert second.answers == straight.answers[stop:]
    assert second.reached == straight.reached[stop:]
    assert [call for call in second.calls if "export" in call] == ["export hf-5"]


def test_a_warm_start_does_not_go_on_from_a_run_of_reinforcement_learning() -> None:
    owners: dict[str, dict[str, Any]] = {"sampler": {}, "controllers": {}, "history": {}, "reporter": {}}
    with pytest.raises(ValueError, match=r"run state has keys .*'history'.*, expected \['reporter', 'sampler'\]"):
        tune(configure(steps=2, batch_examples=2), PAIRS, progress=RunProgress(step=1, owners=owners))
