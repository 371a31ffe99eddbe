"""The loop's order, its groups and its refusal, with parts that only note what is asked of them."""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from megarl.config.run import RunConfig
from megarl.controller.loop import Parts, sample_requests, train
from megarl.controller.mismatch import LogpMismatchError, NonFiniteLogpError
from megarl.data.sampler import PromptSampler
from megarl.parallel.batches import BatchShard
from megarl.records import Prompt, Rollout, SampleRequest, Score, TokenScores
from megarl.rewards.pool import RewardItem
from megarl.telemetry.metrics import Mean, Metrics
from megarl.telemetry.spans import Spans

PROMPTS = [Prompt(index=i, text=f"p{i}", token_ids=(i, i + 1), answer="1") for i in range(6)]


def make_config(**train_overrides: Any) -> RunConfig:
    sizes = {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 2, "mini_batch_responses": 2} | train_overrides
    return RunConfig.model_validate(
        {
            "name": "loop",
            "model": {"path": "unused"},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "random"}},
            "train": sizes,
        }
    )


class Recorder:
    """Stands behind every Protocol of the loop; the trainer's log-probs differ from vLLM's by `offset`."""

    def __init__(self, offset: float = 0.0) -> None:
        self.calls: list[str] = []
        self.records: list[Any] = []
        self.spans = Spans()
        self._offset = offset

    async def generate(self, requests: Sequence[SampleRequest], advance: Callable[[int], None]) -> list[Rollout]:
        self.calls.append("generate")
        advance(len(requests))
        return [
            Rollout(prompt=r.prompt, response=(7, 8), behavior_logp=(-1.0, -2.0), stop_reason="stop", policy_version=0)
            for r in requests
        ]

    async def adopt_weights(self, version: int) -> None:
        self.calls.append(f"adopt {version}")

    async def score(self, batch: Any, *, step: int | None = None) -> Any:
        if step is None:
            self.calls.append("old_logp")
            return self._token_scores(batch)
        self.calls.append("reward")
        return [Score(reward=float(item.sample_index), verifier=float(item.sample_index)) for item in batch]

    def _token_scores(self, shards: Sequence[BatchShard]) -> list[TokenScores]:
        ids = [i for shard in shards for mini in shard for batch in mini for i in batch.sample_ids]
        # Not in order: ranks answer for what they hold.
        return [TokenScores(sample_id=i, old_logp=(-1.0 + self._offset, -2.0)) for i in reversed(ids)]

    async def train_mini_batch(self, index: int) -> Metrics:
        self.calls.append(f"update {index}")
        return {"actor/entropy": Mean(1.0, 2.0)}

    async def publish_weights(self, version: int) -> Metrics:
        self.calls.append(f"publish {version}")
        return {}

    async def export_hf(self, path: str) -> None:
        self.calls.append(f"export {path}")

    # the reporter's part
    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Any:
        yield self

    def advance(self, n: int) -> None: ...

    def report(self, record: Any, *, sampler: dict[str, Any]) -> None:
        self.records.append(record)

    def checkpoint_path(self, step: int) -> str:
        return f"hf-{step}"


def run(config: RunConfig, recorder: Any) -> None:
    parts = Parts(
        policy=recorder,
        pool=recorder,
        scorer=recorder,
        prompts=PROMPTS,
        sampler=PromptSampler(len(PROMPTS), config.train.prompts_per_step, seed=0, shuffle=False),
        decode=lambda ids: " ".join(map(str, ids)),
        reporter=recorder,
    )
    asyncio.run(train(config, parts))


def test_order_of_a_run() -> None:
    recorder = Recorder()
    run(make_config(), recorder)
    step = ["generate", "reward", "old_logp", "update 0", "update 1"]
    assert recorder.calls == [*step, "publish 1", "adopt 1", *step, "publish 2", "adopt 2", "export hf-2"]


def test_advantages_are_within_the_samples_of_a_prompt() -> None:
    recorder = Recorder()
    run(make_config(steps=1), recorder)
    (record,) = recorder.records
    # Rewards 0 and 1 for the two samples of each prompt: their mean is 0.5.
    assert [sample.advantage for sample in record.samples] == [-0.5, 0.5, -0.5, 0.5]
    assert [item.prompt.index for item in record.items] == [0, 0, 1, 1]
    assert [scores.sample_id for scores in record.token_scores] == [0, 1, 2, 3]
    assert isinstance(record.items[0], RewardItem)


def test_a_first_step_that_differs_is_refused_before_any_update() -> None:
    recorder = Recorder(offset=3.0)
    with pytest.raises(LogpMismatchError, match=r"1\.5 nats per token"):
        run(make_config(), recorder)
    assert "update 0" not in recorder.calls


def test_a_nan_is_refused_and_names_the_side() -> None:
    with pytest.raises(NonFiniteLogpError, match=r"the trainer's \(old_logp\) in samples"):
        run(make_config(), Recorder(offset=math.nan))


def test_a_publication_that_goes_wrong_is_refused_on_the_next_step() -> None:
    class Forgetful(Recorder):
        async def adopt_weights(self, version: int) -> None:
            await super().adopt_weights(version)
            self._offset = 3.0

    recorder = Forgetful()
    with pytest.raises(LogpMismatchError, match="suspect the publication"):
        run(make_config(), recorder)
    assert recorder.calls[-1] == "old_logp"


def test_a_prompt_drawn_twice_in_a_step_is_sampled_anew() -> None:
    requests = sample_requests([PROMPTS[0], PROMPTS[0]], step=3, config=make_config())
    assert len({request.seed for request in requests}) == 4
    again = sample_requests([PROMPTS[0], PROMPTS[0]], step=3, config=make_config())
    assert [r.seed for r in requests] == [r.seed for r in again]
