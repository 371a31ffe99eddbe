"""Parts of the loop that only note what is asked of them, and a configuration small enough to follow by hand."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megarl.checkpoint.dist_writer import write_file
from megarl.checkpoint.saved import SavedState
from megarl.config.run import RunConfig
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.loop import train
from megarl.controller.parts import Parts
from megarl.controller.progress import RunProgress
from megarl.controller.protocols import Arrived
from megarl.controller.stopping import StopRequest
from megarl.data.sampler import PromptSampler
from megarl.objective.controllers import ControllerState
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard, split_by_sample
from megarl.records import Prompt, Rollout, SampleRequest, Score, TokenScores, TokenTrace
from megarl.rewards.item import RewardItem, Verdict
from megarl.rules import Rule
from megarl.telemetry.metrics import Max, Mean, Metrics, to_values
from megarl.telemetry.spans import Spans

PROMPTS = [Prompt(index=i, text=f"p{i}", token_ids=(i, i + 1), answer="1") for i in range(6)]


def make_config(objective: dict[str, Any] | None = None, **train_overrides: Any) -> RunConfig:
    sizes = {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 2, "mini_batch_responses": 2} | train_overrides
    return RunConfig.model_validate(
        {
            "name": "loop",
            "model": {"path": "unused"},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "reasoning_gym"}},
            "objective": objective or {},
            "train": sizes,
        }
    )


def rank_of_sample(item: RewardItem) -> float:
    """A verdict under which every group has spread."""
    return float(item.sample_index)


class Recorder:
    """Stands behind every Protocol of the loop.

    A response is the tokens 7 and 8; the policy gives token t the log-prob 6 - t, plus `offset` at a response's first
    token, and each position the entropy `entropy`; vLLM the same without the offset. A reward is the verifier's word
    plus `shift`.
    """

    def __init__(
        self,
        offset: float = 0.0,
        *,
        verify: Callable[[RewardItem], float] = rank_of_sample,
        shift: Callable[[RewardItem], float] = lambda _: 0.0,
        entropy: float = 1.0,
    ) -> None:
        self.calls: list[str] = []
        self.requests: list[SampleRequest] = []
        self.items: list[RewardItem] = []
        self.controls: list[Controls] = []
        self.traced: list[range] = []
        self.scored: list[list[BatchShard]] = []
        self.records: list[Any] = []
        self.reported_updates: list[tuple[int, int]] = []
        self.reached: list[RunProgress] = []
        self.warnings: list[str] = []
        self.kl: float | None = 0.25
        self.spans = Spans()
        self.notes: list[str] = []
        self.logged = {"reward/mean": 0.5, "actor/kl_loss": math.nan}
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.policy_version = 0
        self._offset, self._verify, self._shift, self._entropy = offset, verify, shift, entropy

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        self.calls.append("generate")
        self.requests += requests
        rollouts = [self.answer(position, request) for position, request in enumerate(requests)]
        arrived(range(len(requests)), rollouts)
        return rollouts

    def answer(self, position: int, request: SampleRequest) -> Rollout:
        """The response to the request at this position of a round."""
        return Rollout(
            prompt=request.prompt, response=(7, 8), behavior_logp=(-1.0, -2.0), stop_reason="stop", policy_version=0
        )

    async def receive_weights(self, version: int) -> None:
        self.calls.append(f"receive {version}")

    async def adopt_weights(self, version: int) -> Metrics:
        self.calls.append(f"adopt {version}")
        self.policy_version = version
        return {"timing_s/publish_install": Max(0.5)}

    async def restore(self) -> int:
        self.calls.append("restore")
        return 0

    async def connect(self) -> None:
        self.calls.append("connect")

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        self.calls.append("old_logp" if hold else "expert_logp")
        self.scored.append(list(shards))
        return self._token_scores(shards)

    async def verify(self, items: Sequence[RewardItem], *, step: int) -> list[Verdict]:
        if self.calls[-1:] != ["reward"]:  # a call for what has come
            self.calls.append("reward")
        return [Verdict(self._verify(item)) for item in items]

    def conclude(self, items: Sequence[RewardItem], verdicts: Sequence[Verdict]) -> list[Score]:
        self.items += items
        return [
            Score(
                reward=verdict.value + self._shift(item),
                verifier=verdict.value,
                correct=verdict.value >= 1,
                overlong=self._shift(item),
            )
            for item, verdict in zip(items, verdicts, strict=True)
            if verdict.value is not None
        ]

    def _token_scores(self, shards: Sequence[BatchShard]) -> list[TokenScores]:
        scores = []
        for batch in (batch for shard in shards for mini in shard for batch in mini):
            for sample_id, tokens_R in zip(
                batch.sample_ids, split_by_sample(batch.to("cpu").target_R, batch), strict=True
            ):
                first, *others = (6.0 - token for token in tokens_R.tolist())
                entropies = (self._entropy,) * len(tokens_R)
                logps = (first + self._offset, *others)
                scores.append(TokenScores(sample_id=sample_id, old_logp=logps, old_entropy=entropies))
        # Not in order: ranks answer for what they hold.
        return scores[::-1]

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        self.calls.append(f"update {index}")
        self.controls.append(controls)
        return self._updated(index, traced)

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        self.calls.append("differentiate")
        self.controls.append(controls)
        self.scored.append(list(shards))
        return self._token_scores(shards)

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        self.calls.append("apply")
        return self._updated(0, traced)

    def _updated(self, index: int, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        self.traced.append(traced)
        # The logged KL is another than the one that steers: nothing may be decided by what is logged.
        metrics: Metrics = {"actor/entropy": Mean(1.0, 2.0), "actor/kl_loss": Mean(1e9, 1.0)}
        kl = Mean() if self.kl is None else Mean(self.kl, 1.0)
        return UpdateResult(logp=Mean(-2.0, 2.0), kl=kl, metrics=metrics), [make_trace(2 * index)]

    async def reset_reference(self) -> None:
        self.calls.append("reset_reference")

    async def publish_weights(self, version: int) -> Metrics:
        self.calls.append(f"publish {version}")
        return {}

    async def export_hf(self, path: str) -> None:
        self.calls.append(f"export {path}")

    async def stage_checkpoint(self, path: str) -> None:
        self.calls.append(f"copy {Path(path).name}")
        self._saved_to = Path(path)

    async def finish_checkpoint(self) -> SavedState:
        """What is written when `may_finish` is set."""
        await self.may_finish.wait()
        files = {"__0_0.distcp": write_file(self._saved_to / "__0_0.distcp", b"state")}
        self.calls.append(f"written {self._saved_to.name}")
        return SavedState(updates=2, optimizer_step=1, layout={}, model={}, files=files, staged_bytes=5)

    # the reporter's part
    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Any:
        yield self

    def advance(self, n: int) -> None: ...

    def report_update(self, step: int, update: int, metrics: Metrics) -> None:
        self.reported_updates.append((step, update))

    async def settle(self) -> None: ...

    @contextmanager
    def start_up(self, what: str) -> Iterator[None]:
        self.calls.append(f"start up: {what}")
        yield

    async def report(self, record: Any) -> None:
        self.records.append(record)

    def commit(self, progress: RunProgress) -> None:
        self.calls.append(f"commit {progress.step}")
        self.reached.append(progress)

    def state_dict(self) -> dict[str, Any]:
        return {"reported": len(self.records)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append(f"reporter of {state['reported']}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def positions(self) -> dict[str, Any]:
        return {"metrics.jsonl": len(self.records)}

    def export_path(self, step: int) -> str:
        return f"hf-{step}"

    evaluations = Path("unused")

    def evaluation_path(self, step: int) -> Path:
        return self.evaluations / f"step-{step:06d}"

    def weights_name(self, step: int) -> str:
        return f"weights of step {step}"

    async def report_start(self, metrics: Metrics) -> None:
        self.calls.append("start measured")
        self.start = to_values(metrics)


class Scores:
    """The recorder's verdicts, which remember nothing."""

    def __init__(self, recorder: Recorder) -> None:
        self.verify, self.conclude = recorder.verify, recorder.conclude

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


class Forgetful(Recorder):
    """Its engines sample on from weights that differ from the policy's once they have adopted some."""

    async def adopt_weights(self, version: int) -> Metrics:
        self._offset = 3.0
        return await super().adopt_weights(version)


def make_trace(sample_id: int) -> TokenTrace:
    """A trace of a response of two tokens."""
    two = (1.0, 1.0)
    return TokenTrace(
        sample_id=sample_id,
        logp=two,
        entropy=two,
        expected_q=two,
        ratio=two,
        low=two,
        high=two,
        gate=two,
        weight=two,
        coefficient=two,
        advantage=two,
        rule=(0, int(Rule.CLIP_HIGH)),
    )


def make_parts(config: RunConfig, recorder: Any, **changes: Any) -> Parts:
    values: dict[str, Any] = {
        "policy": recorder,
        "pool": recorder,
        "scorer": Scores(recorder),
        "prompts": PROMPTS,
        "sampler": PromptSampler(len(PROMPTS), config.train.prompts_per_step, seed=0, shuffle=False),
        "decode": lambda responses: [" ".join(map(str, ids)) for ids in responses],
        "token_text": lambda token: f"<{token}>",
        "reporter": recorder,
        "controllers": ControllerState(config.objective, total_steps=config.train.steps, seed=config.train.seed),
        "checkpoints": Checkpoints(config, Path("unused"), stop=StopRequest()),
        "connect": recorder.connect,
    }
    return Parts(**(values | changes))


def run(config: RunConfig, recorder: Any, *, progress: RunProgress | None = None, **changes: Any) -> None:
    asyncio.run(train(config, make_parts(config, recorder, **changes), progress=progress))
