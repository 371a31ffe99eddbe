"""A checkpoint comes out of any layout with the same bytes; a bfloat16 policy has float32 main weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megarl.config.run import RunConfig
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_steps, run_workers

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


def test_bfloat16_policy_keeps_what_bfloat16_would_lose(tmp_path: Path) -> None:
    """Updates of 1e-4 of a weight vanish in bfloat16's 8 bits one by one; 16 of them in float32 do not."""
    source = make_checkpoint(tmp_path / "source", dtype="bfloat16", vocab_size=80)
    config = make_config(
        source,
        model__dtype="bfloat16",
        parallel={"tensor": 2, "world_size": 2},
        policy__optimizer={"lr": 2e-5, "beta1": 0.0},
        train={"prompts_per_step": 16, "samples_per_prompt": 2, "mini_batch_responses": 2, "steps": 1},
    )
    # One sample again and again: every update goes the same way.
    (result,) = run_steps([(config, make_samples(1, seed=3) * 32)])
    before = load_file(source / "model.safetensors")["model.norm.weight"].float()
    after = result.weights["model.norm.weight"].float()
    moved = (after - before).abs()
    one_update = 2e-5
    spacing = before.abs() * 2**-8
    assert (one_update < spacing / 2).all(), (
        "a single update must be too small for bfloat16, or this test proves nothing"
    )
    assert (moved > 0).any()
    assert moved.max() < 40 * one_update + spacing.max()
