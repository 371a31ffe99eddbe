"""The Megatron policy computes what transformers computes on the same weights."""

import json
from pathlib import Path

import pytest
import torch

from megarl.records import Sample
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_steps

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

YARN_ROPE = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def make_model(path: Path, *, rope_scaling: dict[str, object] | None = None, **options: object) -> Path:
    """A checkpoint; `rope_scaling` beside the `rope_parameters` that transformers writes, as model cards say to add
    it."""
    make_checkpoint(path, **options)
    config = json.loads((path / "config.json").read_text())
    if rope_scaling:
        assert config["rope_parameters"]["rope_type"] == "default"
        (path / "config.json").write_text(json.dumps(config | {"rope_scaling": rope_scaling}))
    return path


def transformers_logp(
    path: Path, samples: list[Sample], temperature: float, dtype: torch.dtype = torch.float32
) -> list[list[float]]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    result = []
    for sample in samples:
        tokens = torch.tensor([[*sample.prompt, *sample.response]])
        with torch.no_grad():
            logp = torch.log_softmax(model(tokens).logits[0].double() / temperature, -1)
        first = len(sample.prompt)
        result.append([logp[first + i - 1, token].item() for i, token in enumerate(sample.response)])
    return result


LAYOUTS = [(1, 1, False), (2, 1, False), (3, 1, True), (1, 2, False), (2, 2, True)]
"""tensor, pipeline, sequence parallel"""
QUICK_LAYOUTS = [(3, 1, True), (2, 2, True)]

MODELS = {
    "qwen2-tied": {"family": "qwen2", "tied": True},
    "llama3-untied": {"family": "llama", "tied": False, "rope_parameters": LLAMA3_ROPE},
    "qwen2-yarn": {"family": "qwen2", "tied": False, "rope_scaling": YARN_ROPE},
    # Fewer key-value heads than tensor ranks: every rank works with the one head.
    "llama-mqa": {"family": "llama", "tied": True, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("layouts", [QUICK_LAYOUTS, pytest.param(LAYOUTS, marks=pytest.mark.slow)])
def test_logp_equals_transformers(tmp_path: Path, layouts: list[tuple[int, int, bool]]) -> None:
    samples = make_samples(16, longest=60)
    jobs, cases = [], []
    for name, options in MODELS.items():
        path = make_model(tmp_path / name, **options)
        expected = transformers_logp(path, samples, temperature=0.7)
        for tensor, pipeline, sequence in layouts:
            if name == "llama-mqa" and tensor == 3:
                continue  # (12 + 2) heads x 8 rows do not split over 3 ranks; refused, see tests/models
            layout = {
                "parallel__tensor": tensor,
                "parallel__pipeline": pipeline,
                "parallel__sequence": sequence,
                "parallel__world_size": tensor * pipeline,
            }
            jobs.append((make_config(path, rollout__temperature=0.7, **layout), samples))
            cases.append((name, tensor, pipeline, expected))
    for (name, tensor, pipeline, expected), result in zip(cases, run_steps(jobs), strict=True):
        for got, want in zip(result.old_logp, expected, strict=True):
            assert got == pytest.approx(want, abs=1e-4), f"{name}, tensor {tensor}, pipeline {pipeline}"
