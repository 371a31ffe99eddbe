"""Memory by formula against hand-computed numbers and against what the real policy worker holds and saves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError, ModelShape
from megarl.objective.tokens import Controls
from megarl.planning.policy_memory import (
    PolicyMemory,
    PolicySetup,
    distinct_stages,
    layer_activations,
    policy_memory,
    recomputed_layer,
    rotation_table,
    saved_activations,
)
from megarl.policy.moments import MOMENTS
from megarl.policy.worker import MegatronWorker
from megarl.records import Sample
from tests.models.shapes import make_shape, real_shape
from tests.policy.ranks import make_checkpoint, make_config, run_workers


def make_setup(shape: ModelShape, **changes: Any) -> PolicySetup:
    values: dict[str, Any] = {
        "shape": shape,
        "tensor": 1,
        "pipeline": 1,
        "data": 1,
        "itemsize": 2,
        "sequence": False,
        "distributed_optimizer": True,
        "bucket_elements": None,
        "recompute": "none",
        "fused_head": False,
        "reference": False,
        "tokens": 4096,
        "micro_batches": 8,
    }
    return PolicySetup(**{**values, **changes})


def test_llama_3_70b_on_eight_tensor_ranks_by_hand() -> None:
    shape = real_shape("llama-3-70b")
    layer = 8192 * (8192 // 8) + (8192 + 2 * 1024) // 8 * 8192 + 3 * (28672 // 8) * 8192 + 2 * 8192
    parameters = 80 * layer + 2 * 128256 // 8 * 8192 + 8192
    assert parameters == 8_820_367_360
    memory = policy_memory(make_setup(shape, tensor=8, data=16, sequence=True), 0)
    assert memory.weights == 2 * parameters  # hidden sizes are multiples of 128: no padding
    assert memory.gradients == 4 * parameters
    assert memory.optimizer == 12 * parameters // 16
    assert memory.logits == 2 * 4096 * (8192 + 128256 // 8)
    assert memory.total == sum(memory.items.values())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
    ],
)
def test_weights_are_the_published_parameter_counts(name: str, parameters: int) -> None:
    """As the model cards' safetensors count; vocabularies of 152064 and 128256 rows need no padding."""
    assert policy_memory(make_setup(real_shape(name)), 0).weights == 2 * parameters


def test_an_activation_of_a_layer_by_hand() -> None:
    """h = 6, two tensor ranks: one key-value head of 3 and two query heads, f = 4; 10 tokens, bfloat16."""
    shape = make_shape()
    whole = make_setup(shape, tensor=2, tokens=10)
    per_token = 4 * 6 + (6 + 3 + 3) + (6 + 3) + 6 + 3 * 4
    assert layer_activations(whole) == 10 * (2 * per_token + 4 * (2 + 2))
    # Sequence parallelism keeps half of the norms' rows; selective recomputation drops the two heads' log-sum-exp.
    assert layer_activations(replace(whole, sequence=True)) == 10 * (2 * (per_token - 12) + 4 * (1 + 2))
    assert layer_activations(replace(whole, recompute="selective")) == 10 * (2 * per_token + 4 * 2)
    # Full recomputation keeps each layer's input only: two layers; the rotation's table, the ids, the final norm.
    assert saved_activations(replace(whole, recompute="full"), 0) == 10 * (2 * 12 + 2 * 3 + 8 + 12 + 4)


def test_more_tensor_ranks_than_key_value_heads_gather_the_fused_projection() -> None:
    two, four = (make_setup(make_shape(), tensor=size, tokens=1) for size in (2, 4))
    # Four ranks: (4 + 2 * 2) heads gathered where two ranks have 4 of their own; query and attention output halve.
    assert layer_activations(two) - layer_activations(four) == 2 * (12 - 24 + 3 + 3 + 3 * 2) + 4 * 1


def test_stages_hold_as_many_micro_batches_as_come_before_their_first_backward() -> None:
    setup = make_setup(make_shape(num_layers=8), pipeline=4, micro_batches=8)
    assert distinct_stages(4) == (0, 1, 3)
    assert (distinct_stages(1), distinct_stages(2)) == ((0,), (0, 1))
    assert [policy_memory(setup, stage).in_flight for stage in range(4)] == [4, 3, 2, 1]
    assert policy_memory(replace(setup, micro_batches=2), 0).in_flight == 2
    assert [bool(policy_memory(setup, stage).logits) for stage in range(4)] == [False, False, False, True]


def test_an_impossible_split_is_refused() -> None:
    with pytest.raises(ModelError, match="4 attention heads"):
        policy_memory(make_setup(make_shape(), tensor=3), 0)


# The real worker.


def test_state_of_the_real_worker_byte_for_byte(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 4}
    tied = make_checkpoint(tmp_path / "tied", tied=True, dtype="bfloat16", **sizes)
    path = make_checkpoint(tmp_path / "model", family="llama", tied=False, dtype="bfloat16", **sizes)
    bfloat16: dict[str, Any] = {"model__dtype": "bfloat16"}
    two: list[dict[str, Any]] = [
        {"parallel": {"world_size": 2}},
        {"parallel": {"world_size": 2}, "policy__distributed_optimizer": False},
        {"parallel": {"tensor": 2, "world_size": 2}},
        {"parallel": {"pipeline": 2, "world_size": 2}},
        {"parallel": {"pipeline": 2, "world_size": 2}, "policy__distributed_optimizer": False},
        {"parallel": {"world_size": 2}, "policy__overlap": "all", "policy__bucket_elements": 20_000},
        {"parallel": {"world_size": 2}, "policy__overlap": "gradients", "policy__bucket_elements": 1},
        {"parallel": {"pipeline": 2, "world_size": 2}, "policy__overlap": "all", "policy__bucket_elements": 100_000},
    ]
    configs = [make_config(path, **bfloat16), make_config(path), make_config(path, **bfloat16, **REFERENCE)]
    configs += [make_config(model, **bfloat16, **changes) for changes in two for model in (path, tied)]
    samples = make_equal_samples(16)
    jobs = [(config, (shard_step(samples, config),)) for config in configs]
    for config, counted in zip(configs, run_workers(jobs, count_state), strict=True):
        setup = setup_of(config)
        for stage in range(config.parallel.pipeline):
            memory = policy_memory(setup, stage)
            ranks = [state for at, state in counted if at == stage]
            assert {state["weights"] for state in ranks} == {memory.weights}, config.parallel
            assert {state["reference"] for state in ranks} == {memory.reference}
            assert {state["gradients"] for state in ranks} == {memory.gradients}
            assert max(state["optimizer"] for state in ranks) == memory.optimizer


REFERENCE = {"objective__auxiliary": {"kl": {"coefficient": 0.05, "estimator": "k2"}}}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"policy__recompute": "selective"},
    {"policy__recompute": "full"},
    {"policy__head": "fused"},
    {"parallel": {"tensor": 2, "world_size": 2}},
    {"parallel": {"tensor": 2, "world_size": 2, "sequence": True}},
    {"parallel": {"tensor": 2, "world_size": 2, "sequence": True}, "policy__recompute": "full"},
    {"parallel": {"pipeline": 2, "world_size": 2}},
    {"parallel": {"pipeline": 2, "world_size": 2}, "policy__recompute": "full"},
]


def test_activations_of_the_real_model(tmp_path: Path) -> None:
    """The most that autograd holds during an update of five micro-batches, on every rank."""
    sizes = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 1000, "family": "llama", "tied": False}
    path = make_checkpoint(tmp_path / "model", num_attention_heads=8, num_key_value_heads=8, **sizes)
    shared = make_checkpoint(tmp_path / "shared", num_attention_heads=2, num_key_value_heads=1, **sizes)
    train = {"prompts_per_step": 10, "samples_per_prompt": 4, "mini_batch_responses": 40, "steps": 4}
    layouts = [(path, changes) for changes in LAYOUTS]
    layouts.append((shared, {"parallel": {"tensor": 2, "world_size": 2}}))  # both ranks hold the one key-value head
    configs = [
        make_config(model, train=train, policy__tokens_per_micro_batch=256, **changes) for model, changes in layouts
    ]
    samples = make_equal_samples(40)
    jobs = [(config, (shard_step(samples, config),)) for config in configs]
    for config, measured in zip(configs, run_workers(jobs, watch_saved), strict=True):
        setup = setup_of(config)
        for stage, tokens, batches, peak in measured:
            assert (tokens, batches) == (setup.tokens, setup.micro_batches)
            memory = policy_memory(setup, stage)
            formula, on_cpu = (saved_by_autograd(setup, memory, on_cpu=cpu) for cpu in (False, True))
            assert on_cpu == pytest.approx(peak, rel=0.005), config
            assert 0.70 < formula / peak < 0.79, config


def saved_by_autograd(setup: PolicySetup, memory: PolicyMemory, *, on_cpu: bool) -> int:
    """The most at once. On the CPU a layer saves beside: x / rms of its two norms and SwiGLU's two factors. (Attention
    saves what it does on a GPU, but for a number per token and head: the sequences are short.)"""
    rows = setup.tokens // setup.tensor if setup.sequence else setup.tokens
    hidden = rows * setup.shape.hidden_size * setup.itemsize
    width = 2 * setup.shape.ffn_size
    extra = (2 * hidden + setup.tokens * width // setup.tensor * setup.itemsize) * on_cpu
    last = memory.stage == setup.pipeline - 1
    held = memory.in_flight * (saved_activations(setup, memory.stage) + hidden * on_cpu * last)
    if setup.recompute == "full":
        # The table of a micro-batch at rest is held by its arguments, where autograd does not see it.
        held -= (memory.in_flight - 1) * rotation_table(setup)
        # The last layer is computed again once logits and final norm are gone.
        final = (hidden * (1 + on_cpu) + 4 * rows) * last
        return held + max(memory.logits, recomputed_layer(setup) + extra - final)
    if setup.recompute == "selective":  # without Transformer Engine the rotated query and key are computed again
        extra -= setup.tokens * 2 * setup.shape.hidden_size // setup.tensor * setup.itemsize * on_cpu
    return held + memory.in_flight * setup.shape.num_layers // setup.pipeline * extra + memory.logits


def setup_of(config: RunConfig) -> PolicySetup:
    tokens = LENGTH * (config.policy.tokens_per_micro_batch // LENGTH)
    return make_setup(
        read_model_shape(config.model.path),
        tensor=config.parallel.tensor,
        pipeline=config.parallel.pipeline,
        data=config.parallel.data,
        itemsize=2 if config.model.dtype == "bfloat16" else 4,
        sequence=config.parallel.sequence,
        distributed_optimizer=config.policy.distributed_optimizer,
        bucket_elements=config.policy.bucket_elements,
        recompute=config.policy.recompute,
        fused_head=config.policy.head == "fused",
        reference=config.objective.auxiliary.kl is not None,
        tokens=tokens,
        micro_batches=config.train.mini_batch_responses * LENGTH // tokens,
    )


LENGTH = 32
"""Tokens of a sample's stream; all but one are response tokens."""


def make_equal_samples(count: int) -> list[Sample]:
    response = tuple(number % 70 for number in range(LENGTH))
    return [Sample(prompt=(1,), response=response, behavior_logp=(0.0,) * LENGTH, advantage=1.0) for _ in range(count)]


def count_state(worker: MegatronWorker, config: RunConfig, rank: int, shards: list[Any]) -> list[Any] | None:
    """(stage, bytes by kind) of every rank after an update."""
    shard = shards[worker._grid.position(rank).data]
    worker.score(shard)
    worker.train_mini_batch(0, Controls(step=1, seed=0, entropy_coefficient=0.0))
    kept = worker._state
    storages = [weight.untyped_storage() for weight in kept.weights.values()]
    state: Counter[str] = Counter()
    state["weights"] = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    state["reference"] = sum(weight.nbytes for weight in (kept.reference or {}).values())
    state["gradients"] = sum(buffer.grad_data.nbytes for chunk in worker._ddp for buffer in chunk.buffers)
    for share in kept.shares().values():
        assert share.is_copy == (config.model.dtype == "bfloat16")
        mains = [share.main] if share.is_copy else []
        for tensor in (*mains, *(share.moments[name] for name in MOMENTS)):
            assert tensor.dtype == torch.float32
            state["optimizer"] += tensor.nbytes
    return gather(worker._grid.position(rank).pipeline, dict(state))


def watch_saved(worker: MegatronWorker, config: RunConfig, rank: int, shards: list[Any]) -> list[Any] | None:
    """(stage, tokens, micro-batches, peak bytes of tensors saved for backward) of every rank."""
    shard = shards[worker._grid.position(rank).data]
    worker.score(shard)
    parameters = {
        parameter.untyped_storage().data_ptr() for chunk in worker._chunks for parameter in chunk.parameters()
    }
    saved = SavedBytes(parameters)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        worker.train_mini_batch(0, Controls(step=1, seed=0, entropy_coefficient=0.0))
    stage = worker._grid.position(rank).pipeline
    return gather(stage, shard[0][0].num_stream_tokens, len(shard[0]), saved.peak)


def gather(*mine: Any) -> list[Any] | None:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered if dist.get_rank() == 0 else None


class SavedBytes:
    """Bytes of the distinct storages that autograd holds, parameters apart, and their peak."""

    def __init__(self, parameters: set[int]) -> None:
        self._parameters = parameters
        self._held: Counter[int] = Counter()
        self._now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> "Held":
        return Held(self, tensor)

    def add(self, storage: torch.UntypedStorage, count: int) -> None:
        key = storage.data_ptr()
        if key in self._parameters:
            return
        before = self._held[key] > 0
        self._held[key] += count
        self._now += ((self._held[key] > 0) - before) * storage.nbytes()
        self.peak = max(self.peak, self._now)


class Held:
    """A saved tensor; counted as long as autograd keeps it."""

    def __init__(self, saved: SavedBytes, tensor: torch.Tensor) -> None:
        self._saved, self.tensor = saved, tensor
        saved.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self._saved.add(self.tensor.untyped_storage(), -1)
