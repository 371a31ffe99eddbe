"""Two real steps of every method, one after another, around one real vLLM engine: `python -m tests.e2e.method_runs`.

A program of its own, because vLLM starts processes and the policy adapts its process to the CPU. The loop, the policy
worker, the publication and the engine are those of a run; only Ray is left out, so that starting them is paid once.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.loop import train
from megarl.controller.parts import Parts
from megarl.controller.protocols import Arrived
from megarl.controller.reporting import StepReporter
from megarl.controller.stopping import StopRequest
from megarl.data.decoding import build_decode, build_token_text
from megarl.data.prompts import load_prompts
from megarl.data.sampler import PromptSampler
from megarl.data.sft import load_pairs
from megarl.data.stops import StopConditions, load_stops
from megarl.data.tokenizer import load_tokenizer
from megarl.objective.controllers import ControllerState
from megarl.objective.tokens import Controls
from megarl.objective.update_result import UpdateResult
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.policy.mini_batch import ObjectivePasses
from megarl.policy.passes import Passes
from megarl.policy.process import RankPlace
from megarl.policy.reports import scores_by_sample
from megarl.policy.worker import MegatronWorker
from megarl.records import Rollout, SampleRequest, TokenScores, TokenTrace
from megarl.reshard.seal import new_secret
from megarl.reshard.signals import listen
from megarl.rewards.pool import RewardPool
from megarl.rollout.engine import RolloutEngine
from megarl.rules import Rule
from megarl.runtime.merging import merge_adoptions, merge_publish_reports, merge_reports
from megarl.telemetry.columns import RL_COLUMNS
from megarl.telemetry.console import Console
from megarl.telemetry.metrics import Metrics
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans
from tests.policy.states import keep_state, restore_state

ROOT = Path(__file__).parents[2]
SMALL: dict[str, list[str]] = {
    # What a method says of sizes is for real models; the tiny run's reward is random.
    "brorl": ["train.samples_per_prompt=8"],
    "calibrl": ['reward.verifier={kind="reasoning_gym"}'],
    "dapo": ["reward.overlong.cache_tokens=2"],
}
SIZES = ["train.steps=2", "train.prompts_per_step=4", "train.mini_batch_responses=8", "parallel={}"]


class LocalPolicy:
    """One policy rank in this process as the loop's `PolicyGroup`."""

    def __init__(self, worker: MegatronWorker) -> None:
        self._worker, self._versions = worker, 0
        self._start = keep_state(worker)

    def restart(self, config: RunConfig) -> None:
        """The first weights again, and another objective."""
        worker = self._worker
        restore_state(worker, self._start)
        worker._config = config
        passes = Passes(device=worker._device)
        worker._objective = ObjectivePasses(
            config.objective, passes, device=worker._device, temperature=config.rollout.temperature
        )

    async def score(self, shards: Sequence[BatchShard], *, hold: bool = True) -> list[TokenScores]:
        scored = self._worker.score(shards[0], hold=hold)
        return list(scores_by_sample(shards[0], scored))

    async def train_mini_batch(
        self, index: int, controls: Controls, *, traced: range
    ) -> tuple[UpdateResult, list[TokenTrace]]:
        report = self._worker.train_mini_batch(index, controls, traced=traced)
        return merge_reports([report], rules=~Rule(0)), list(report.traces)

    async def score_and_differentiate(self, shards: Sequence[BatchShard], controls: Controls) -> list[TokenScores]:
        return list(scores_by_sample(shards[0], self._worker.score_and_differentiate(shards[0], controls)))

    async def apply_update(self, *, traced: range) -> tuple[UpdateResult, list[TokenTrace]]:
        report = self._worker.apply_update(traced=traced)
        return merge_reports([report], rules=~Rule(0)), list(report.traces)

    async def reset_reference(self) -> None:
        self._worker.reset_reference()

    async def sft_update(self, shards: Sequence[MiniBatch]) -> UpdateResult:
        raise NotImplementedError("not a part of these runs")

    async def publish_weights(self, version: int) -> Metrics:
        self._versions += 1
        return merge_publish_reports([await asyncio.to_thread(self._worker.publish_weights, self._versions)])

    async def export_hf(self, path: str) -> None:
        """These runs end without a checkpoint."""


class LocalPool:
    """One engine as the loop's `RolloutPool`."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine, self._versions = engine, 0
        self.policy_version = 0

    async def restore(self) -> int:
        """There is one engine, and none in its place."""
        return 0

    async def generate(self, requests: Sequence[SampleRequest], arrived: Arrived) -> list[Rollout]:
        rollouts = await self._engine.generate(requests)
        arrived(range(len(requests)), rollouts)
        return rollouts

    async def receive_weights(self, version: int) -> None:
        self._versions += 1
        await self._engine.receive_weights(self._versions)

    async def adopt_weights(self, version: int) -> Metrics:
        return merge_adoptions([await self._engine.adopt_weights(self._versions)])


async def run_methods(base: Path, methods: Sequence[Path], directory: Path) -> None:
    """A run directory `directory/<method>-...` for each."""
    config = load_config(base, [*SIZES, "objective.auxiliary.kl={}"])
    tokenizer = load_tokenizer(config.model.path)
    stops = load_stops(config.model.path, tokenizer, data=config.data, rollout=config.rollout)
    engine = RolloutEngine(config=config.rollout, model=config.model, index=0, stop_token_ids=stops.token_ids)
    await engine.start()
    try:
        worker = _make_worker(config)
        policy, pool = LocalPolicy(worker), LocalPool(engine)

        async def connect() -> None:
            endpoint = worker.open_session()
            await asyncio.gather(engine.connect(endpoint), asyncio.to_thread(worker.join_session, endpoint))

        await connect()
        for method in methods:
            overrides = ["objective={}", str(method), *SIZES, *SMALL.get(method.stem, []), f"name={method.stem}"]
            own = load_config(base, [*overrides, f"logging.directory={directory}"])
            policy.restart(own)
            # The engine, too, goes back to the first weights.
            await pool.receive_weights(0)
            await policy.publish_weights(0)
            await pool.adopt_weights(0)
            await _run(own, base, policy, pool, tokenizer, stops, connect)
            print(f"done {method.stem}", flush=True)
        worker.close()
    finally:
        await engine.shutdown()


def _make_worker(config: RunConfig) -> MegatronWorker:
    listener = listen("127.0.0.1", 0)
    place = RankPlace(
        rank=0,
        world_size=1,
        master_host="127.0.0.1",
        master_port=listener.getsockname()[1],
        secret=new_secret(),
        listener=listener,
    )
    return MegatronWorker(config, place, optimizer=config.policy.optimizer, total_updates=8, reference=True)


async def _run(
    config: RunConfig, base: Path, policy: Any, pool: Any, tokenizer: Any, stops: StopConditions, connect: Any
) -> None:
    directory = RunDirectory.create(config, source=base, verb="train")
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
    longest = config.rollout.max_response_tokens
    with (
        Console(steps=config.train.steps, columns=RL_COLUMNS) as console,
        Spans(directory.timeline_path) as spans,
        RewardPool(config.reward, config.data, max_response_tokens=longest, seed=config.train.seed) as scorer,
    ):
        reporter = StepReporter(
            config=config,
            directory=directory,
            console=console,
            sinks=sinks,
            update_sinks=update_sinks,
            spans=spans,
        )
        prompts = load_prompts(config.data, tokenizer, max_prompt_tokens=config.rollout.max_prompt_tokens)
        limits = {"max_prompt_tokens": config.rollout.max_prompt_tokens, "max_response_tokens": longest}
        guided = config.objective.auxiliary.guided is not None
        parts = Parts(
            policy=policy,
            pool=pool,
            scorer=scorer,
            prompts=prompts,
            sampler=PromptSampler(len(prompts), config.train.prompts_per_step, seed=0, shuffle=True),
            decode=build_decode(tokenizer),
            token_text=build_token_text(tokenizer),
            reporter=reporter,
            controllers=ControllerState(config.objective, total_steps=config.train.steps, seed=0),
            checkpoints=Checkpoints(config, directory.checkpoints, stop=StopRequest()),
            connect=connect,
            experts=load_pairs(config.data, tokenizer, stops=stops, **limits) if guided else None,
            stops=stops,
        )
        await train(config, parts)
    sinks.close()
    update_sinks.close()


if __name__ == "__main__":
    asyncio.run(run_methods(Path(sys.argv[1]), [Path(name) for name in sys.argv[3:]], Path(sys.argv[2])))
