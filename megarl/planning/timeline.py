"""What lies in memory phase by phase, for a run whose memory was measured so (`megarl report`).

On GPUs that policy and engines share it is `turns`; on GPUs of their own the same items, where nobody gives way. On a
CPU the same sums of one process each, without the context that is assumed of CUDA: what would move to host memory stays
in the policy's process there, and vLLM's CPU build has no sleep mode.
"""

from collections.abc import Sequence
from dataclasses import replace

from megarl.config.run import RunConfig
from megarl.models.shape import ModelShape
from megarl.planning.engine_memory import GIB, RolloutMemory, rollout_memory, rollout_setup
from megarl.planning.head import publishing_bytes
from megarl.planning.policy_memory import PolicyMemory, policy_setup, stages_memory
from megarl.planning.turns import Turn, plan_shared, scoring_bytes, shared_memory


def plan_timeline(config: RunConfig, shape: ModelShape, *, gpu_bytes: int | None) -> tuple[Turn, ...]:
    """The phases of a step in their order, on the fullest GPU of each side; None: on a CPU, in the largest process of
    each. Raises ModelError where the model does not split."""
    stages = stages_memory(policy_setup(config, shape, publication=publishing_bytes(config, shape)))
    size = GIB if gpu_bytes is None else gpu_bytes
    engine = rollout_memory(rollout_setup(config, shape, gpu_memory_gib=size / GIB, tensor=config.rollout.tensor))
    if gpu_bytes is None:
        return _on_cpu(config, stages, engine)
    if config.cluster.colocate:
        return plan_shared(config, shape, stages, engine, gpu_bytes=gpu_bytes).turns
    return _apart(stages, engine)


def _apart(stages: Sequence[PolicyMemory], engine: RolloutMemory) -> tuple[Turn, ...]:
    """The policy's buffers stand all the time, and so do those of an engine, which rests meanwhile."""
    standing = max(stage.total - stage.activations - stage.logits - stage.working for stage in stages)
    scoring, updating = max(map(scoring_bytes, stages)), max(stage.total for stage in stages)
    policy = {"generate": standing, "score": scoring, "update": updating, "publish": standing}
    staged = {"publish": engine.staging}
    return tuple(
        Turn(name=name, policy=size, engine=engine.budget + staged.get(name, 0)) for name, size in policy.items()
    )


def _on_cpu(config: RunConfig, stages: Sequence[PolicyMemory], engine: RolloutMemory) -> tuple[Turn, ...]:
    bare = [replace(stage, context=0) for stage in stages]
    if config.cluster.colocate:
        turns = shared_memory(bare, engine, layer=0, reading=0, moved=()).turns
    else:
        turns = _apart(bare, engine)
    cache = int(config.rollout.cpu_kv_cache_gib * GIB) // config.rollout.tensor
    held = engine.weights + engine.working + cache
    return tuple(Turn(name=turn.name, policy=turn.policy, engine=held) for turn in turns)
