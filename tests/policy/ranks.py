"""Policy workers on ranks of this machine: tiny checkpoints, batches, and what runs them.

On the CPU and gloo, or on the GPUs that there are and NCCL.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard, split_by_sample
from megarl.policy.worker import MegatronWorker
from megarl.records import Sample, TokenTrace
from tests.dist.gloo import run_on_ranks
from tests.dist.gpus import take_gpu


def make_checkpoint(
    path: Path, *, family: str = "qwen2", tied: bool = True, dtype: str = "float32", **sizes: Any
) -> Path:
    """A random Hugging Face checkpoint, written by transformers: 4 layers, 12 heads in 6 groups, vocabulary 77."""
    import transformers

    shape = {
        "vocab_size": 77,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
    } | sizes
    classes = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config_class, model_class = classes[family]
    torch.manual_seed(0)
    model = model_class(config_class(**shape, initializer_range=0.08))
    for name, parameter in model.named_parameters():
        # Norm weights and biases start at constants, which would hide a mistake in their mapping.
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * (0.3 if "norm" in name else 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return path


def make_config(path: Path, **overrides: Any) -> RunConfig:
    """A run config for tests; `overrides` are dotted paths with "__" for the dot."""
    values: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(path), "dtype": "float32"},
        "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
        "reward": {"verifier": {"kind": "random"}},
        "policy": {"tokens_per_micro_batch": 64, "optimizer": {"lr": 1e-2, "weight_decay": 0.1}},
        "train": {"prompts_per_step": 4, "samples_per_prompt": 4, "mini_batch_responses": 8, "steps": 4},
    }
    for dotted, value in overrides.items():
        section = values
        *parents, name = dotted.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return RunConfig.model_validate(values)


def make_samples(count: int, *, vocab: int = 77, seed: int = 0, longest: int = 14) -> list[Sample]:
    """Samples of uneven lengths with advantages of both signs."""
    draw = random.Random(seed)
    return [
        Sample(
            prompt=tuple(draw.randrange(vocab) for _ in range(draw.randint(1, 6))),
            response=(response := tuple(draw.randrange(vocab) for _ in range(draw.randint(1, longest)))),
            behavior_logp=(0.0,) * len(response),
            advantage=draw.choice([-1.5, -0.5, 0.5, 1.0, 2.0]),
        )
        for _ in range(count)
    ]


@dataclass
class StepResult:
    """What two mini-batches of a step did, on every layout the same."""

    old_logp: list[list[float]]
    sums: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    traces: list[TokenTrace] = field(default_factory=list)
    """By sample."""
    ref_logp: list[list[float]] | None = None


Job = tuple[RunConfig, list[Sample]]


def run_steps(jobs: Sequence[Job], *, timeout_s: float = 300.0) -> list[StepResult]:
    """Score, update on every mini-batch and export, each job under the layout of its config.

    Jobs of one world size share their processes, one after another: starting Megatron takes longer than the work.
    """
    return run_workers(
        [(config, (shard_step(samples, config),)) for config, samples in jobs], _step, timeout_s=timeout_s
    )


def run_workers(
    jobs: Sequence[tuple[RunConfig, tuple[Any, ...]]], work: Callable[..., Any], *, timeout_s: float = 300.0
) -> list[Any]:
    """`work(worker, config, rank, *args)` on every policy rank of each (config, args); rank 0's results, by job."""
    results: list[Any] = [None] * len(jobs)
    for world in sorted({config.parallel.world_size for config, _ in jobs}):
        mine = [index for index, (config, _) in enumerate(jobs) if config.parallel.world_size == world]
        prepared = [(jobs[index][0], work, jobs[index][1]) for index in mine]
        with tempfile.TemporaryDirectory() as directory:
            ports = str(Path(directory) / "ports")
            of_ranks = run_on_ranks(_run_jobs, world, prepared, ports, timeout_s=timeout_s)
        for index, result in zip(mine, of_ranks[0], strict=True):
            results[index] = result
    return results


def _run_jobs(jobs: Sequence[tuple[RunConfig, Callable[..., Any], tuple[Any, ...]]], ports: str) -> list[Any]:
    """`ports`: path of a file store in which rank 0 tells each job's port, on which it listens already."""
    from megarl.policy.process import RankPlace
    from megarl.reshard.signals import listen

    rank, world = dist.get_rank(), dist.get_world_size()
    # The worker meets its peers by itself, as it does in a run.
    dist.destroy_process_group()
    store = dist.FileStore(ports, world)
    local_rank = take_gpu(rank, world)
    results = []
    for number, (config, work, args) in enumerate(jobs):
        listener = listen("127.0.0.1", 0) if rank == 0 else None
        if listener:
            store.set(f"port {number}", str(listener.getsockname()[1]))
        place = RankPlace(
            rank=rank,
            world_size=world,
            master_host="127.0.0.1",
            master_port=int(store.get(f"port {number}")),
            secret="5e" * 32,
            listener=listener,
            local_rank=local_rank,
        )
        worker = MegatronWorker(
            config,
            place,
            optimizer=config.policy.optimizer,
            total_updates=8,
            reference=config.objective.auxiliary.kl is not None,
        )
        results.append(work(worker, config, rank, *args))
        worker.close()
    return results


def _step(worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]) -> StepResult | None:
    bonus = config.objective.auxiliary.entropy
    controls = Controls(step=1, seed=0, entropy_coefficient=bonus.coefficient if bonus else 0.0)
    return take_step(worker, config, rank, shards, controls)


def take_step(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], controls: Controls
) -> StepResult | None:
    """Score, one update per mini-batch with every token traced, export; the whole picture on rank 0."""
    shard = shards[worker._grid.position(rank).data]
    scored = worker.score(shard)
    every = range(config.train.responses_per_step)
    updates = range(config.train.updates_per_step)
    reports = [worker.train_mini_batch(index, controls, traced=every) for index in updates]
    weights = export(worker)
    gathered: list[Any] = [None] * config.parallel.world_size
    dist.all_gather_object(gathered, (_by_id(shard, scored) if scored else None, reports))
    if rank:
        return None
    return _merge(gathered, worker, weights)


def export(worker: MegatronWorker) -> dict[str, torch.Tensor]:
    """Full tensors on rank 0, through the reference path."""
    from megarl.policy.optimizer import settle_weights
    from megarl.policy.weights import export_hf_weights, plan_export

    settle_weights(worker._ddp)
    if worker._grid.position(worker._place.rank).data != 0:
        return {}
    plan = plan_export(worker._shape, grid=worker._grid, bucket_bytes=20_000, dtype=worker._dtype)
    return {name: tensor.to("cpu", copy=True) for name, tensor in export_hf_weights(worker._chunks, plan)}


def _by_id(shard: BatchShard, scored: Any) -> dict[int, tuple[list[float], list[float] | None]]:
    result = {}
    for mini, scored_mini in zip(shard, scored, strict=True):
        for batch, values in zip(mini, scored_mini, strict=True):
            old = split_by_sample(values.old_logp_R, batch)
            ref = [None] * len(old) if values.ref_logp_R is None else split_by_sample(values.ref_logp_R, batch)
            for sample_id, old_R, ref_R in zip(batch.sample_ids, old, ref, strict=True):
                result[sample_id] = (old_R.tolist(), None if ref_R is None else ref_R.tolist())
    return result


def _merge(gathered: list[Any], worker: MegatronWorker, weights: dict[str, torch.Tensor]) -> StepResult:
    grid = worker._grid
    reporters = [gathered[grid.reporter(data)] for data in range(grid.data)]
    by_id = {sample_id: values for scored, _ in reporters for sample_id, values in scored.items()}
    ordered = [by_id[sample_id] for sample_id in sorted(by_id)]
    has_reference = ordered[0][1] is not None
    result = StepResult([old for old, _ in ordered], ref_logp=[ref for _, ref in ordered] if has_reference else None)
    for updates in zip(*(reports for _, reports in reporters), strict=True):
        result.sums.append(sum(update.sums.sum_N for update in updates).tolist())
        result.grad_norms.append(updates[0].grad_norm)
        result.traces += [trace for update in updates for trace in update.traces]
    result.traces.sort(key=lambda trace: trace.sample_id)
    result.weights = weights
    return result
