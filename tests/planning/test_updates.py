"""Micro-batches before an update are those that packing makes of it."""

from pathlib import Path

import pytest

from megarl.config.loader import load_config
from megarl.parallel.packing import plan_micro_batches
from megarl.planning.updates import count_micro_batches
from tests.config.text import write_config


@pytest.mark.parametrize("length", [100, 2047, 5000, 8192, 9000])
@pytest.mark.parametrize("data", [1, 2, 8])
def test_micro_batches_are_those_of_the_packing(tmp_path: Path, length: int, data: int) -> None:
    overrides = ["train.prompts_per_step=24", "train.mini_batch_responses=48", f"parallel.world_size={data}"]
    config = load_config(write_config(tmp_path), [*overrides, "cluster.gpus_per_node=9"])
    planned = plan_micro_batches([length] * 48, data_ranks=data, max_tokens=config.policy.tokens_per_micro_batch)
    assert count_micro_batches(config, length) == len(planned[0])
