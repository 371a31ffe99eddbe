"""The linear layers for CPUs without products of bfloat16 do what Megatron's do, collectives included."""

from pathlib import Path

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.layers import WidenedColumnLinear, WidenedRowLinear
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers

LAYOUTS = {
    "one rank": {},
    "TP2": {"parallel": {"tensor": 2, "world_size": 2}},
    "TP2 sequence parallel": {"parallel": {"tensor": 2, "world_size": 2, "sequence": True}},
}


def compare_layers(worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]) -> tuple[int, float]:
    """(layers that were exchanged, the largest difference of a gradient they made): in float32, so that products are
    the same ones."""
    controls = Controls(step=1, seed=0)

    def gradients() -> torch.Tensor:
        worker.score_and_differentiate(shards[0], controls)
        return torch.cat([buffer.grad_data.clone() for chunk in worker._ddp for buffer in chunk.buffers])

    expected = gradients()
    exchanged = 0
    for chunk in worker._chunks:
        for layer in chunk.decoder.layers:
            attention, mlp = layer.self_attention, layer.mlp
            for module, base, made in (
                (attention.linear_qkv, ColumnParallelLinear, WidenedColumnLinear),
                (mlp.linear_fc1, ColumnParallelLinear, WidenedColumnLinear),
                (attention.linear_proj, RowParallelLinear, WidenedRowLinear),
                (mlp.linear_fc2, RowParallelLinear, WidenedRowLinear),
            ):
                assert isinstance(module, base)
                module.__class__ = made
                exchanged += 1
    difference = (gradients() - expected).norm() / expected.norm()
    assert expected.norm() > 0
    return exchanged, float(difference)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_they_give_the_same_gradients(tmp_path: Path, layout: dict[str, object]) -> None:
    config = make_config(
        make_checkpoint(tmp_path / "model"),
        train={"prompts_per_step": 2, "samples_per_prompt": 4, "mini_batch_responses": 8, "steps": 4},
        **layout,
    )
    (result,) = run_workers([(config, (shard_step(make_samples(8, seed=2), config),))], compare_layers)
    exchanged, difference = result
    assert exchanged == 16
    assert difference < 1e-6
