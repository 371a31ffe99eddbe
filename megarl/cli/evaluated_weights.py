"""How the weights of an evaluation come into engines: vLLM reads a Hugging Face checkpoint; those of a
torch.distributed.checkpoint are published to engines that were started without any, as a policy would.

Invariants: nothing of the weights is written to a disk; an engine that has adopted nothing does not sample, whether it
was started with the others or in the place of one that was lost.
"""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from megarl.checkpoint.conversion import open_source
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import check_model
from megarl.cli.evaluated_model import EvaluatedModel
from megarl.cli.session import Session
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig
from megarl.controller.engine_losses import EngineLosses
from megarl.controller.evaluating import Ask
from megarl.controller.protocols import Publisher, RolloutPool
from megarl.controller.publication import publish_weights
from megarl.controller.regeneration import generate
from megarl.controller.reporting import StepReporter
from megarl.controller.turns import OwnGpus, Turns
from megarl.models.shape import ModelError
from megarl.runtime.checkpoint_publisher import CheckpointPublisher
from megarl.runtime.closing import undisturbed
from megarl.runtime.policy_session import connect
from megarl.runtime.rollout_actors import RayRolloutPool

_VERSION = 0
"""Of the only weights that there are, as of those that vLLM reads itself."""


@dataclass(frozen=True, kw_only=True)
class ServingParts:
    """The `PublishingParts` of an evaluation alone."""

    policy: Publisher
    pool: RolloutPool
    connect: Callable[[], Awaitable[None]]
    reporter: StepReporter
    engine_losses: EngineLosses = field(default_factory=EngineLosses)
    turns: Turns = field(default_factory=OwnGpus)


def check_stored(evaluated: EvaluatedModel) -> None:
    """ConfigError where a torch.distributed.checkpoint lacks a tensor of its config.json's model, or has it in another
    shape, or files are missing or cut short. Reads no tensor."""
    text = evaluated.text_path
    try:
        source = open_source(evaluated.path, text)
        source.close()
        if evaluated.saved is not None:
            manifest = evaluated.saved.manifest
            check_model(manifest, source.shape, str(evaluated.path), than=f"{text / 'config.json'}")
    except (CheckpointError, ModelError) as error:
        raise ConfigError(f"megarl eval: {error}") from error


def engines_alone(config: RunConfig, *, stored: bool) -> RunConfig:
    """Nobody trains: no policy rank takes a place, or has GPUs that engines could share. What engines begin with is
    decided by where the weights are, whatever the run that made them had.

    stored: in a torch.distributed.checkpoint.
    """
    parallel = config.parallel.model_copy(update={"world_size": 0, "tensor": 1})
    cluster = config.cluster.model_copy(update={"colocate": False})
    overrides = dict(config.rollout.vllm_overrides)
    if stored:
        overrides["load_format"] = "dummy"
    elif config.rollout.starts_without_weights:
        del overrides["load_format"]
    rollout = config.rollout.model_copy(update={"vllm_overrides": overrides})
    return config.model_copy(update={"parallel": parallel, "cluster": cluster, "rollout": rollout})


@asynccontextmanager
async def serve_stored(
    session: Session, config: RunConfig, evaluated: EvaluatedModel, pool: RayRolloutPool
) -> AsyncIterator[Ask]:
    """Ask engines, which run and have no weights, once they have the checkpoint's; one that is lost is started again
    and gets them too. ConfigError where the checkpoint turns out to be damaged when it is read."""
    publisher = CheckpointPublisher(config, evaluated.path)
    parts = ServingParts(
        policy=publisher,
        pool=pool,
        connect=functools.partial(connect, publisher, pool),
        reporter=session.reporter,
    )
    try:
        with session.reporter.start_up("weight transfer"):
            await parts.connect()
            await publish_weights(_VERSION, parts)
        yield functools.partial(generate, parts=parts, rounds=config.rollout.restarts)
    except CheckpointError as error:
        raise ConfigError(f"megarl eval: {error}") from error
    finally:
        await undisturbed(publisher.close())
