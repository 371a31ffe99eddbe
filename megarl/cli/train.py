"""`megarl train`: RLVR from a config."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from megarl.checkpoint.run_checkpoint import RunCheckpoint
from megarl.cli.benchmarks import load_evaluator
from megarl.cli.head import pin_head
from megarl.cli.inputs import ModelInputs, TrainInputs, load_model_inputs, load_train_inputs
from megarl.cli.loading import load_beside
from megarl.cli.paths import resolve_model_path, shown_path
from megarl.cli.resume import Resumed
from megarl.cli.session import Session, run_session
from megarl.cli.start_weights import find_start, pin_start
from megarl.cli.train_checks import find_environment_problems
from megarl.config.base import ConfigError
from megarl.config.changes import allows_any
from megarl.config.run import RunConfig
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.evaluating import Evaluator
from megarl.controller.loop import train
from megarl.controller.parts import Parts
from megarl.controller.progress import RunProgress
from megarl.controller.turns import GIB, OwnGpus, ResidualMemory, SharedGpus, Turns
from megarl.data.decoding import build_decode, build_token_text
from megarl.objective.controllers import ControllerState
from megarl.rewards.pool import RewardPool, check_reward
from megarl.runtime.closing import undisturbed
from megarl.runtime.cluster import Placement, check_cluster, ray_cluster
from megarl.runtime.keeper import Keeper
from megarl.runtime.policy_actors import RayPolicyGroup
from megarl.runtime.policy_session import connect
from megarl.runtime.rollout_actors import RayRolloutPool
from megarl.telemetry.columns import RL_COLUMNS

_TRIED_PROMPTS = 2


def run_train(
    config: RunConfig,
    *,
    sources: Sequence[Path],
    replaced: Sequence[str] = (),
    resumed: Resumed | None = None,
    link: Path | None = None,
) -> int:
    """Check everything that can be checked, then train; returns the exit code.

    replaced: what files took from each other, said at the start. resumed: the run that goes on. link: made to lead to
    the run's directory.
    """
    config = resolve_model_path(config)
    reached = resumed.checkpoint if resumed else None
    start = None if reached else find_start(config)
    config, about_head = pin_head(pin_start(config, start))
    check_reward(config.reward)
    if problems := list(find_environment_problems(config)):
        raise ConfigError("\n".join(problems), problems)
    if not _all_steps_made(config, reached):
        config.checkpoint.check_end(time.time())
    model = load_model_inputs(config)
    training = Training(
        config=model.pin(config), model=model, about=(*replaced, *about_head), resumed=resumed, start=start
    )
    return run_session(
        training.config,
        training.work,
        sources=sources,
        verb="train",
        steps=config.train.steps,
        columns=RL_COLUMNS,
        resumed=resumed,
        link=link,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run, as far as it is known before it has a directory; `work` makes it, each of its methods with what the one
    before has opened."""

    config: RunConfig
    model: ModelInputs
    about: tuple[str, ...]
    """Lines for a person."""
    resumed: Resumed | None
    start: RunCheckpoint | None
    """Whose weights it begins with; None where it begins with those of the model, or goes on."""

    @property
    def _reached(self) -> RunCheckpoint | None:
        return self.resumed.checkpoint if self.resumed else None

    async def work(self, session: Session) -> None:
        """The whole run."""
        session.say(*self.about)
        if _all_steps_made(self.config, self._reached):
            session.say(f"all {self.config.train.steps} steps are done; a larger train.steps goes on")
            return
        keeper = Keeper.given()
        if keeper is None:
            await check_cluster(self.config)
        data, evaluator = await self._load_data(session)
        tried = [data.prompts[index] for index in range(min(_TRIED_PROMPTS, len(data.prompts)))]
        longest, seed = self.config.rollout.max_response_tokens, self.config.train.seed
        with RewardPool(self.config.reward, self.config.data, max_response_tokens=longest, seed=seed) as scorer:
            await scorer.try_out(tried)
            async with _started_ray(session, keeper) as placement:
                await self._train(session, placement, data, evaluator, scorer)

    async def _load_data(self, session: Session) -> tuple[TrainInputs, Evaluator | None]:
        config, model = self.config, self.model
        with session.reporter.start_up("data"):
            data = await load_beside(functools.partial(load_train_inputs, config, model), session.console)
            evaluator = await load_evaluator(config, model, session.console) if config.eval.every_steps else None
        if self.start is not None:
            session.say(f"start  weights of {shown_path(self.start.path)} (train.init_from)")
        session.say(*model.describe(), f"data   {data.prompts.about}")
        return data, evaluator

    async def _train(
        self,
        session: Session,
        placement: Placement,
        data: TrainInputs,
        evaluator: Evaluator | None,
        scorer: RewardPool,
    ) -> None:
        """On the places that there are."""
        stop_token_ids, roster = self.model.stops.token_ids, session.heart.roster
        policy = RayPolicyGroup(self.config, session.directory, placement, roster)
        gpus = await policy.find_gpus()
        pool = RayRolloutPool(
            self.config, session.directory, placement, roster, stop_token_ids=stop_token_ids, gpus=gpus
        )
        turns = _find_turns(session, policy, pool, placement)
        parts = self._build_parts(session, data, evaluator, scorer, policy=policy, pool=pool, turns=turns)
        begins = self.start is not None or pool.has_other_weights
        progress = _find_progress(self.config, parts, self.resumed, begins=begins)
        checkpoint, weights_only = self._reached or self.start, self._reached is None
        try:
            load = functools.partial(_load, session, policy, checkpoint, weights_only=weights_only)
            async with session.heart.explaining():
                await _start_workers(session, policy, pool, load, turns)
                await train(self.config, parts, progress=progress)
                await pool.leave()
        finally:
            policy.stop_watching()
            # Also after a failure or a signal: killed with Ray, vLLM would leave its files behind.
            await undisturbed(pool.close())
        await policy.close()

    def _build_parts(
        self,
        session: Session,
        data: TrainInputs,
        evaluator: Evaluator | None,
        scorer: RewardPool,
        *,
        policy: RayPolicyGroup,
        pool: RayRolloutPool,
        turns: Turns,
    ) -> Parts:
        config, model = self.config, self.model
        return Parts(
            policy=policy,
            pool=pool,
            scorer=scorer,
            prompts=data.prompts,
            sampler=data.sampler,
            decode=build_decode(model.tokenizer),
            token_text=build_token_text(model.tokenizer),
            reporter=session.reporter,
            controllers=ControllerState(config.objective, total_steps=config.train.steps, seed=config.train.seed),
            checkpoints=Checkpoints(config, session.directory.checkpoints, stop=session.stop),
            connect=functools.partial(connect, policy, pool),
            experts=data.experts,
            stops=model.stops,
            turns=turns,
            evaluator=evaluator,
        )


def _all_steps_made(config: RunConfig, reached: RunCheckpoint | None) -> bool:
    return reached is not None and reached.step == config.train.steps


def _find_progress(config: RunConfig, parts: Parts, resumed: Resumed | None, *, begins: bool) -> RunProgress | None:
    """Where the run is: after the steps of the checkpoint that it goes on from, if the parts take it from there; before
    all where it `begins` with weights that the engines have not read; None where it begins with those that they have.

    ConfigError, before a worker starts, where the parts refuse it.
    """
    if resumed is None or resumed.checkpoint is None:
        return RunProgress.collect(parts.owners, step=0, policy_version=0) if begins else None
    try:
        progress = RunProgress.from_state(resumed.checkpoint.manifest.progress)
        if allows_any("data", resumed.allowed):
            progress = _with_other_prompts(progress, parts)
        progress.restore(parts.owners, steps=config.train.steps)
    except ValueError as error:
        raise ConfigError(f"the run cannot go on from {shown_path(resumed.checkpoint.path)}: {error}") from error
    return progress


def _with_other_prompts(progress: RunProgress, parts: Parts) -> RunProgress:
    """The same where the prompts may be others, as many as they were: --allow-change data. Whoever allowed it because
    a file was moved hears where it has others."""
    before = progress.owners.get("sampler", {})
    sampler = {**before, "digest": parts.sampler.digest}
    if sampler != before:
        parts.reporter.warn(
            "problems, answers or tokens are others than those of the steps before (--allow-change data)"
        )
    return replace(progress, owners={**progress.owners, "sampler": sampler})


@asynccontextmanager
async def _started_ray(session: Session, keeper: Keeper | None) -> AsyncIterator[Placement]:
    async with AsyncExitStack() as stack:
        with session.reporter.start_up("ray"):
            cluster = ray_cluster(session.config, num_engines=session.config.rollout.engines, keeper=keeper)
            placement = await stack.enter_async_context(cluster)
        yield placement


def _find_turns(session: Session, policy: RayPolicyGroup, pool: RayRolloutPool, placement: Placement) -> Turns:
    config = session.config
    if not config.cluster.colocate:
        return OwnGpus()
    residual = ResidualMemory(placement.plan.engine_ranks, limit_bytes=config.rollout.asleep_gib * GIB)
    return SharedGpus(policy, pool, session.reporter, residual=residual)


async def _start_workers(
    session: Session,
    policy: RayPolicyGroup,
    pool: RayRolloutPool,
    load: Callable[[], Awaitable[None]],
    turns: Turns,
) -> None:
    """load: what the ranks read before they meet the engines."""
    if turns.shared:  # vLLM measures what it finds of a GPU, and must find all of it
        await _start_engines(session, pool)
        await turns.start()
        await _start_policy(session, policy, load)
        await turns.to_publication()
    else:
        await asyncio.gather(_start_policy(session, policy, load), _start_engines(session, pool))
    with session.reporter.start_up("weight transfer"):
        await connect(policy, pool)


async def _start_policy(session: Session, policy: RayPolicyGroup, load: Callable[[], Awaitable[None]]) -> None:
    config = session.config
    with session.reporter.start_up("policy ranks"):
        await policy.setup(
            optimizer=config.policy.optimizer.scaled(config.train.mini_batch_responses),
            total_updates=config.train.steps * config.train.updates_per_step,
            reference=config.objective.auxiliary.reads("reference"),
        )
    await load()


async def _load(
    session: Session, policy: RayPolicyGroup, checkpoint: RunCheckpoint | None, *, weights_only: bool
) -> None:
    if checkpoint is not None:
        with session.reporter.start_up("checkpoint"):
            await policy.load_checkpoint(str(checkpoint.path), weights_only=weights_only)


async def _start_engines(session: Session, pool: RayRolloutPool) -> None:
    with session.reporter.start_up("vLLM engines"):
        await pool.setup()
