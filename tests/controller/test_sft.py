"""The warm start: what it trains on, and where its loss comes from."""

import asyncio
from collections.abc import Sequence
from typing import Any

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
        self.exported: list[str] = []

    async def sft_update(self, shards: Sequence[MiniBatch]) -> UpdateResult:
        # The logged log-prob is another than the one that is meant: a loss is not made of what is logged.
        return UpdateResult(logp=Mean(-6.0, 3.0), kl=Mean(), metrics={"actor/logp": Mean(-1e9, 1.0)})

    def report_sft(self, step: int, *, loss: float, metrics: Any, num_tokens: int) -> None:
        self.losses.append(loss)
        self.tokens.append(num_tokens)

    async def export_hf(self, path: str) -> None:
        self.exported.append(path)

    def checkpoint_path(self, step: int) -> str:
        return f"hf-{step}"


def test_the_loss_is_the_answers_cross_entropy() -> None:
    config = make_config()
    config = config.model_validate(config.model_dump() | {"sft": {"steps": 2, "batch_examples": 2}})
    recorder: Any = Recorder()
    asyncio.run(fine_tune(config, config.sft, policy=recorder, pairs=PAIRS, reporter=recorder))
    assert recorder.losses == [2.0, 2.0]
    assert recorder.tokens == [6, 6]
    assert recorder.exported == ["hf-2"]
