"""`megarl train`: RLVR from a config."""

import asyncio
from pathlib import Path

from megarl.cli.session import Session, check_weights, resolve_model_path, run_session
from megarl.config.run import RunConfig
from megarl.controller.loop import Parts, train
from megarl.data.prompts import load_prompts
from megarl.data.sampler import PromptSampler
from megarl.data.tokenizer import load_stop_token_ids, load_tokenizer
from megarl.rewards.pool import RewardPool, check_reward
from megarl.runtime.cluster import start_ray, stop_ray
from megarl.runtime.policy_actors import RayPolicyGroup
from megarl.runtime.rollout_actors import RayRolloutPool
from megarl.telemetry.columns import RL_COLUMNS


def run_train(config: RunConfig, *, source: Path) -> int:
    """Check everything that can be checked, then train; returns the exit code."""
    config = resolve_model_path(config)
    check_reward(config.reward)
    check_weights(config.model.path)
    tokenizer = load_tokenizer(config.model.path)
    prompts = load_prompts(config.data, tokenizer, max_prompt_tokens=config.rollout.max_prompt_tokens)
    stop_token_ids = load_stop_token_ids(config.model.path, tokenizer)
    sampler = PromptSampler(
        len(prompts), config.train.prompts_per_step, seed=config.train.seed, shuffle=config.data.shuffle
    )

    async def work(session: Session) -> None:
        longest = config.rollout.max_response_tokens
        try:
            with RewardPool(config.reward, config.data, max_response_tokens=longest, seed=config.train.seed) as scorer:
                policy, pool = _place_workers(session, stop_token_ids)
                parts = Parts(
                    policy=policy,
                    pool=pool,
                    scorer=scorer,
                    prompts=prompts,
                    sampler=sampler,
                    decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
                    reporter=session.reporter,
                )
                try:
                    await _start_workers(session, policy, pool)
                    await train(config, parts)
                finally:
                    # Also after a failure or a signal: killed with Ray, vLLM would leave its files behind.
                    await pool.close()
                await policy.close()
        finally:
            stop_ray()

    return run_session(config, work, source=source, verb="train", steps=config.train.steps, columns=RL_COLUMNS)


def _place_workers(session: Session, stop_token_ids: tuple[int, ...]) -> tuple[RayPolicyGroup, RayRolloutPool]:
    config = session.config
    with session.reporter.start_up("ray"):
        placement = start_ray(config, num_engines=config.rollout.engines)
    policy = RayPolicyGroup(config, session.directory, placement)
    return policy, RayRolloutPool(config, session.directory, placement, stop_token_ids=stop_token_ids)


async def _start_workers(session: Session, policy: RayPolicyGroup, pool: RayRolloutPool) -> None:
    await asyncio.gather(_start_policy(session, policy), _start_engines(session, pool))
    await pool.connect(await policy.connect_engines(pool.num_receivers))
    await policy.await_engines()


async def _start_policy(session: Session, policy: RayPolicyGroup) -> None:
    config = session.config
    with session.reporter.start_up("policy ranks"):
        await policy.setup(
            optimizer=config.policy.optimizer,
            total_updates=config.train.steps * config.train.updates_per_step,
            reference=config.objective.kl.coefficient > 0,
        )


async def _start_engines(session: Session, pool: RayRolloutPool) -> None:
    with session.reporter.start_up("vLLM engines"):
        await pool.setup()
