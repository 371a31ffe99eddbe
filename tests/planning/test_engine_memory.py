"""Memory of an engine's workers by formula, and the smallest engine that starts."""

from dataclasses import replace

import pytest

from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.planning.engine_memory import (
    GIB,
    RolloutSetup,
    find_engine,
    kv_bytes_per_token,
    rollout_memory,
    rollout_setup,
)
from tests.models.shapes import CONFIGS, real_shape


@pytest.mark.parametrize(
    ("name", "tensor", "bytes_per_token"),
    [
        ("llama-3-8b", 1, 2 * 32 * 8 * 128 * 2),
        ("llama-3-70b", 8, 2 * 80 * 1 * 128 * 2),
        ("qwen2.5-7b", 4, 2 * 28 * 1 * 128 * 2),
        ("llama-3.1-405b", 16, 2 * 126 * 1 * 128 * 2),  # 8 heads for 16 workers
    ],
)
def test_kv_cache_per_token(name: str, tensor: int, bytes_per_token: int) -> None:
    assert kv_bytes_per_token(real_shape(name), tensor=tensor, itemsize=2) == bytes_per_token


def test_kv_cache_is_what_weights_and_work_leave() -> None:
    shape = real_shape("llama-3-8b")
    setup = RolloutSetup(shape=shape, tensor=1, itemsize=2, kv_itemsize=2, budget=68 * GIB, longest=4100)
    memory = rollout_memory(setup)
    assert memory.weights == 2 * 8_030_261_248
    assert memory.kv_cache == 68 * GIB - memory.weights - memory.working - memory.context
    assert memory.kv_tokens == memory.kv_cache // (131072 * 16) * 16
    # 4100 tokens take 257 blocks of 16.
    assert memory.full_sequences == memory.kv_tokens // (257 * 16)
    halved = rollout_memory(replace(setup, kv_itemsize=1))
    assert halved.kv_tokens >= 2 * memory.kv_tokens
    small = rollout_memory(replace(setup, budget=10 * GIB))
    assert small.kv_cache < 0
    assert (small.kv_tokens, small.full_sequences) == (0, 0)


def test_the_smallest_engine_that_starts() -> None:
    """140 GiB of weights on GPUs of 80 GiB, of which engines have 68: two workers hold them and nothing else."""
    planned = load_planned(CONFIGS / "llama-3-70b.json", (), PlanOptions())
    config, shape = planned.config, planned.shape

    def starts(tensor: int) -> bool:
        return rollout_memory(rollout_setup(config, shape, gpu_memory_gib=80, tensor=tensor)).starts

    assert [tensor for tensor in (1, 2, 4, 8) if starts(tensor)] == [4, 8]
    assert find_engine(config, shape, gpu_memory_gib=80) == 4
    assert find_engine(config, shape, gpu_memory_gib=16) is None
