"""Log-probs of the policy against those of transformers, computed on the CPU in float32 from the same weights."""

import itertools
from pathlib import Path

import torch

from gpu_parts.check import Check
from megarl.records import Sample
from tests.policy.ranks import make_config, make_samples, run_steps
from tests.policy.test_transformers_parity import MODELS, make_model, transformers_logp

FLOAT32_LIMIT = 1e-4
BFLOAT16_FACTOR = 2.0
"""The policy may be off by as much as transformers' own bfloat16, times this: both round, in different places."""
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
}
TEMPERATURE = 0.7
RANK_TIMEOUT_S = 120.0


def run(check: Check) -> None:
    names = ("qwen2-tied", "llama3-untied")
    samples = make_samples(8, longest=20) if check.small else make_samples(16, vocab=SIZES["vocab_size"], longest=400)
    for name in names:
        # bfloat16 weights: both dtypes have exactly these values.
        sizes = {} if check.small else SIZES
        path = make_model(check.scratch / name, dtype="bfloat16", **(MODELS[name] | sizes))
        check.attempt(name, compare, check, name, path, samples, need_s=15)


def compare(check: Check, name: str, path: Path, samples: list[Sample]) -> None:
    exact = _flat(transformers_logp(path, samples, TEMPERATURE))
    rounded = _flat(transformers_logp(path, samples, TEMPERATURE, torch.bfloat16))
    own = float((rounded - exact).abs().max())
    said = []
    cases = list(itertools.product(("float32", "bfloat16"), ("logits", "fused")))
    jobs = [
        (
            make_config(
                path,
                model__dtype=dtype,
                policy__head=head,
                rollout__temperature=TEMPERATURE,
                train={"prompts_per_step": 1, "samples_per_prompt": len(samples), "mini_batch_responses": len(samples)},
                policy__tokens_per_micro_batch=64 if check.small else 2048,
                objective__advantage={"method": "rloo"},
            ),
            samples,
        )
        for dtype, head in cases
    ]
    for (dtype, head), result in zip(cases, run_steps(jobs, timeout_s=min(RANK_TIMEOUT_S, check.left_s)), strict=True):
        error = (_flat(result.old_logp) - exact).abs()
        limit = FLOAT32_LIMIT if dtype == "float32" else BFLOAT16_FACTOR * own
        check.judge(
            f"{name}, {dtype}, {head} head", {"max": (float(error.max()), limit)},
            mean=float(error.mean()), tokens=len(exact), transformers_bfloat16_max=own,
        )  # fmt: skip
        said.append(f"{dtype} {head} head {float(error.max()):.1e}")
    check.say(f"{name}: at most {', '.join(said)} ({len(exact)} tokens; transformers' own bfloat16 {own:.1e})")


def _flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)
