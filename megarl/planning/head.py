"""`policy.head = "auto"`: which output head fits, by the arithmetic of `megarl plan`.

Logits are faster; the fused head, which never holds [tokens, vocabulary], is taken where the last stage has no room for
them. Decided once, before a run starts; the run's own configuration then names the head.
"""

from dataclasses import dataclass, replace
from typing import Literal

from megarl.config.run import RunConfig
from megarl.models.shape import ModelShape
from megarl.planning.changes import changed
from megarl.planning.engine_memory import GIB
from megarl.planning.nodes import place_run
from megarl.planning.policy_memory import policy_memory, policy_setup
from megarl.planning.transfer import plan_publication, sending_bytes
from megarl.planning.turns import ASLEEP_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChoice:
    """What was decided, and by which numbers."""

    head: Literal["logits", "fused"]
    with_logits: int
    """Bytes of a GPU of the last stage at its fullest moment, with logits; an engine that sleeps there included."""
    gpu_bytes: int | None
    """Of a GPU; None without one: nothing is short then."""

    def __str__(self) -> str:
        if self.gpu_bytes is None:
            return f"{self.head}: there are no GPUs"
        needs = f"{self.with_logits / GIB:.1f} of the {self.gpu_bytes / GIB:.1f} GiB of a GPU"
        if self.head == "logits":
            return f"logits: with them the last stage needs {needs}"
        return f"fused: with logits the last stage would need {needs}"


def choose_head(config: RunConfig, shape: ModelShape, *, gpu_bytes: int | None, sft: bool = False) -> HeadChoice:
    """For GPUs of so much memory, the smallest where they differ; whatever the configuration says of the head. sft: of
    a run of `megarl sft`."""
    needed = bytes_with_logits(config, shape, sft=sft)
    short = gpu_bytes is not None and needed > gpu_bytes
    return HeadChoice(head="fused" if short else "logits", with_logits=needed, gpu_bytes=gpu_bytes)


def bytes_with_logits(config: RunConfig, shape: ModelShape, *, sft: bool = False) -> int:
    """See HeadChoice.with_logits. sft: there are no engines then, so that nothing is published and none sleeps there,
    and no reference. Raises ModelError where the model does not split."""
    with_logits = changed(config, {"policy.head": "logits"})
    if sft:
        alone = replace(policy_setup(with_logits, shape), reference=False)
        return policy_memory(alone, alone.pipeline - 1).total
    setup = policy_setup(with_logits, shape, publication=publishing_bytes(config, shape))
    asleep = ASLEEP_BYTES if config.cluster.colocate else 0
    return policy_memory(setup, setup.pipeline - 1).total + asleep


def publishing_bytes(config: RunConfig, shape: ModelShape) -> int:
    """What publishing keeps on a policy GPU, as `megarl plan` counts it."""
    publish = config.rollout.publish
    if not publish.delta:
        return sending_bytes(publish)
    planned = plan_publication(
        shape,
        place_run(config).topology,
        itemsize=config.model.itemsize,
        bucket_bytes=publish.bucket_mib << 20,
        shared_memory=publish.transport == "shared_memory",
    )
    return sending_bytes(publish) + planned.sent_max_bytes


def with_head(config: RunConfig, choice: HeadChoice) -> RunConfig:
    """The configuration of a run with that head."""
    return changed(config, {"policy.head": choice.head})
