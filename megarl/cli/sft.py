"""`megarl sft`: supervised warm start from a config."""

import functools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from megarl.cli.head import pin_head
from megarl.cli.inputs import load_model_inputs, load_sft_inputs
from megarl.cli.loading import load_beside
from megarl.cli.paths import resolve_model_path
from megarl.cli.session import Session, run_session
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.controller.sft import fine_tune
from megarl.runtime.cluster import check_cluster, ray_cluster
from megarl.runtime.policy_actors import RayPolicyGroup
from megarl.telemetry.columns import SFT_COLUMNS


def run_sft(
    config: RunConfig, *, sources: Sequence[Path], replaced: Sequence[str] = (), link: Path | None = None
) -> int:
    """Check everything that can be checked, then train on the data set's answers; returns the exit code.

    replaced: what files took from each other, said at the start. link: made to lead to the run's directory.
    """
    config = resolve_model_path(config)
    sft = config.sft
    if sft is None:
        raise ConfigError(
            "`megarl sft` reads the [sft] section, and there is none; add one with steps and batch_examples"
        )
    config, about_head = pin_head(config, sft=True)
    model = load_model_inputs(config)
    config = model.pin(config)

    async def work(session: Session) -> None:
        session.say(*replaced, *about_head)
        await check_cluster(config)
        with session.reporter.start_up("data"):
            pairs = await load_beside(functools.partial(load_sft_inputs, config, model), session.console)
        session.say(*model.describe(), f"data   {pairs.about}")
        async with AsyncExitStack() as stack:
            with session.reporter.start_up("ray"):
                placement = await stack.enter_async_context(ray_cluster(config, num_engines=0))
            policy = RayPolicyGroup(config, session.directory, placement, session.heart.roster)
            stack.callback(policy.stop_watching)
            await stack.enter_async_context(session.heart.explaining())
            with session.reporter.start_up("policy ranks"):
                await policy.setup(
                    optimizer=sft.optimizer.scaled(sft.batch_examples), total_updates=sft.steps, reference=False
                )
            await fine_tune(config, sft, policy=policy, pairs=pairs, reporter=session.reporter)
            await policy.close()

    return run_session(config, work, sources=sources, verb="sft", steps=sft.steps, columns=SFT_COLUMNS, link=link)
