"""What lies on a GPU that policy and engines share (cluster.colocate), phase by phase, and what of the policy moves.

    generate    an awake engine, beside what the policy keeps on the GPU
    sleep       the engine's context, beside the same
    score       the policy's whole state and a forward pass, beside the engine's context
    update      the policy's fullest moment, beside the engine's context
    wake        memory for the engine's weights, beside what the policy keeps
    publish     the same with packed messages, and the engine's largest layer twice, which is how it is installed; with
                staging "none" also the messages that it checks, and no copy of the weights beside the two

Invariant: a phase's bytes are a sum of `PolicyMemory` and `RolloutMemory` items; nothing is estimated here but the
layer. An engine that is started again finds the memory of the row generate, which is what vLLM asks for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from megarl.config.cluster import Moved
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.geometry import tensor_share
from megarl.models.shape import ModelShape
from megarl.planning.changes import changed
from megarl.planning.engine_memory import GIB, RolloutMemory, rollout_memory, rollout_setup
from megarl.planning.policy_memory import CONTEXT_BYTES, PolicyMemory, policy_setup, stages_memory
from megarl.planning.transfer import reading_bytes, sending_bytes

ASLEEP_BYTES = CONTEXT_BYTES
"""Of an engine that sleeps: what its CUDA context, its graphs and NCCL keep is assumed to be no more."""

OF_ENGINES = ("generate", "sleep", "wake", "publish")
"""The phases in which the policy has given way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A phase of a step on the fullest of the shared GPUs; bytes."""

    name: str
    policy: int
    engine: int

    @property
    def total(self) -> int:
        return self.policy + self.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """The GPUs that policy and engines share, over a step."""

    turns: tuple[Turn, ...]
    """In their order."""
    moved: tuple[Moved, ...]
    """What of the policy is in host memory while engines sample."""
    host: int
    """Bytes of it, of the policy rank that moves most."""
    kept: int
    """Bytes of the policy on the GPU meanwhile, its context included."""

    @property
    def fullest(self) -> Turn:
        return max(self.turns, key=lambda turn: turn.total)


def shared_memory(
    stages: Sequence[PolicyMemory], engine: RolloutMemory, *, layer: int, reading: int, moved: Sequence[Moved]
) -> SharedMemory:
    """stages: those that differ. layer: bytes of an engine worker's largest layer. reading: of what it has while it
    checks what comes. moved: what gives way."""
    turns = (
        Turn(name="generate", policy=_most(stages, moved), engine=engine.budget),
        Turn(name="sleep", policy=_most(stages, moved), engine=ASLEEP_BYTES),
        Turn(name="score", policy=max(map(scoring_bytes, stages)), engine=ASLEEP_BYTES),
        Turn(name="update", policy=max(stage.total for stage in stages), engine=ASLEEP_BYTES),
        Turn(name="wake", policy=_most(stages, moved), engine=ASLEEP_BYTES + engine.weights),
        Turn(
            name="publish",
            policy=max(_kept(stage, moved) + stage.publication for stage in stages),
            # Checked first, installed then.
            engine=ASLEEP_BYTES + engine.weights + max(layer, reading),
        ),
    )
    host = max(sum(stage.items[name] for name in moved) for stage in stages)
    return SharedMemory(turns=turns, moved=tuple(moved), host=host, kept=_most(stages, moved))


def plan_shared(
    config: RunConfig,
    shape: ModelShape,
    stages: Sequence[PolicyMemory],
    engine: RolloutMemory,
    *,
    gpu_bytes: int | None,
) -> SharedMemory:
    """What moves is what cluster.offload says; else the least with which the phases of engines fit a GPU, everything
    where none does, and where there is no GPU (None)."""
    layer = largest_layer(shape, tensor=config.rollout.tensor) * config.model.itemsize

    def with_moved(moved: Sequence[Moved]) -> SharedMemory:
        return shared_memory(stages, engine, layer=layer, reading=reading_bytes(config.rollout.publish), moved=moved)

    if config.cluster.offload is not None:
        return with_moved(tuple(dict.fromkeys(config.cluster.offload)))
    choices = sorted(map(with_moved, _choices(config)), key=lambda plan: plan.host)
    if gpu_bytes is None:
        return choices[-1]
    fitting = (
        plan for plan in choices if all(turn.total <= gpu_bytes for turn in plan.turns if turn.name in OF_ENGINES)
    )
    return next(fitting, choices[-1])


def choose_moved(config: RunConfig, *, gpu_bytes: int | None) -> tuple[Moved, ...]:
    """What of the policy a run keeps in host memory while engines sample, on GPUs of so much memory; None: without."""
    shape = read_model_shape(config.model.path)
    size = GIB if gpu_bytes is None else gpu_bytes
    engine = rollout_memory(rollout_setup(config, shape, gpu_memory_gib=size / GIB, tensor=config.rollout.tensor))
    stages = stages_memory(policy_setup(config, shape, publication=sending_bytes(config.rollout.publish)))
    return plan_shared(config, shape, stages, engine, gpu_bytes=gpu_bytes).moved


def fraction_beside(config: RunConfig, shape: ModelShape, shared: SharedMemory, *, gpu_bytes: int) -> float | None:
    """The largest rollout.memory_fraction, in hundredths, that is left beside what the policy keeps; None where no
    engine starts with it."""
    fraction = (gpu_bytes - shared.kept) * 100 // gpu_bytes / 100
    if fraction <= 0:
        return None
    smaller = changed(config, {"rollout.memory_fraction": fraction})
    setup = rollout_setup(smaller, shape, gpu_memory_gib=gpu_bytes / GIB, tensor=config.rollout.tensor)
    return fraction if rollout_memory(setup).starts else None


def largest_layer(shape: ModelShape, *, tensor: int) -> int:
    """Elements of the largest that vLLM installs at once: the embedding, or the two projections of an MLP."""
    share = tensor_share(shape, tensor, side="engine")
    return max(share.vocab_rows, 2 * share.ffn_rows) * shape.hidden_size


def could_move(config: RunConfig) -> tuple[Moved, ...]:
    """All of the policy that there is to move."""
    return ("optimizer", "reference") if config.objective.auxiliary.reads("reference") else ("optimizer",)


def _choices(config: RunConfig) -> Iterator[tuple[Moved, ...]]:
    names = could_move(config)
    for count in range(len(names) + 1):
        yield from combinations(names, count)


def _kept(stage: PolicyMemory, moved: Sequence[Moved]) -> int:
    """On the GPU while engines sample: gradients are given back in any case."""
    held = {"weights": stage.weights, "reference": stage.reference, "optimizer": stage.optimizer}
    return stage.context + sum(size for name, size in held.items() if name not in moved)


def _most(stages: Sequence[PolicyMemory], moved: Sequence[Moved]) -> int:
    return max(_kept(stage, moved) for stage in stages)


def scoring_bytes(stage: PolicyMemory) -> int:
    """The whole state, and of a micro-batch its logits and what one layer holds."""
    return stage.total - stage.activations - stage.publication
