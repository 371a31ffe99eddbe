"""A checkpoint comes out of any layout with the same bytes; a bfloat16 policy has float32 main weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megarl.checkpoint.convert import convert
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.parallel.batches import BatchShard
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_steps, run_workers
from tests.policy.states import save_checkpoint
from tests.policy.test_state import train

LAYOUTS = [(2, 1), (3, 1), (1, 2), (2, 2)]


def export(worker: MegatronWorker, config: RunConfig, rank: int, path: str) -> None:
    worker.export_hf(path)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path: Path, tied: bool) -> None:
    source = make_checkpoint(tmp_path / "source", tied=tied, dtype="bfloat16")
    jobs = []
    for tensor, pipeline in LAYOUTS:
        layout = {"tensor": tensor, "pipeline": pipeline, "world_size": tensor * pipeline}
        config = make_config(source, model__dtype="bfloat16", parallel=layout)
        jobs.append((config, (str(tmp_path / f"tp{tensor}-pp{pipeline}"),)))
    run_workers(jobs, export)
    expected = load_file(source / "model.safetensors")
    for _, (path,) in jobs:
        found = load_file(Path(path) / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, f"{path}: {name}"
            assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), f"{path}: {name}"


def test_a_converted_checkpoint_is_the_export_byte_for_byte(tmp_path: Path) -> None:
    """In float32; from bfloat16 too, whose checkpoint keeps its float32 main weights beside what is exported."""
    source = make_checkpoint(tmp_path / "source")
    layouts: dict[str, dict[str, Any]] = {
        "float32": {"parallel": {"tensor": 2, "world_size": 2}},
        "bfloat16": {"parallel": {"pipeline": 2, "world_size": 2}, "model__dtype": "bfloat16"},
    }
    jobs = []
    for name, changes in layouts.items():
        config = make_config(source, train__mini_batch_responses=6, train__samples_per_prompt=3, **changes)
        (tmp_path / name).mkdir()
        jobs.append((config, (shard_step(make_samples(12), config), str(tmp_path / name))))
    run_workers(jobs, train_save_and_export)
    for name in layouts:
        exported, converted = tmp_path / name / "exported", tmp_path / name / "converted"
        convert(tmp_path / name / "step-000001", converted, to="hf", model=exported)
        files = {path.name: path.read_bytes() for path in exported.iterdir()}
        assert {path.name: path.read_bytes() for path in converted.iterdir()} == files, name
        trained, start = load_file(exported / "model.safetensors"), load_file(source / "model.safetensors")
        assert all(not torch.equal(tensor, start[key].to(tensor.dtype)) for key, tensor in trained.items()), name


def train_save_and_export(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str
) -> None:
    train(worker, shards[worker._grid.position(rank).data])
    save_checkpoint(worker, config, directory)
    worker.export_hf(f"{directory}/exported")


def test_bfloat16_policy_keeps_what_bfloat16_would_lose(tmp_path: Path) -> None:
    """One update of 2e-4 is lost on a bfloat16 weight above 0.5, whose neighbours are 0.004 away; 16 are not."""
    source = make_checkpoint(tmp_path / "source", dtype="bfloat16", vocab_size=80)
    lr, updates = 2e-4, 16
    config = make_config(
        source,
        model__dtype="bfloat16",
        parallel={"tensor": 2, "world_size": 2},
        policy__optimizer={"lr": lr, "beta1": 0.0},
        # Unclipped, or the one sample's gradient would end after a few updates.
        objective__clip={"low": 1.0, "high": math.inf},
        train={"prompts_per_step": updates, "samples_per_prompt": 2, "mini_batch_responses": 2, "steps": 1},
    )
    # One sample again and again: every update goes the same way.
    (result,) = run_steps([(config, make_samples(1, seed=3) * 2 * updates)])
    before = load_file(source / "model.safetensors")["model.norm.weight"].float()
    moved = (result.weights["model.norm.weight"].float() - before).abs()[before.abs() > 0.5]
    smallest_step = 2**-8
    assert lr < smallest_step / 2
    assert (moved >= smallest_step).any()
    assert moved.max() <= updates * lr * 1.5 + 2 * smallest_step
