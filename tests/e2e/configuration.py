"""The configuration of the end-to-end runs: small enough for two cores, with every part of a step in it."""

from pathlib import Path

TINY = """
name = "tiny"
[model]
path = "{model}"
dtype = "float32"
[parallel]
tensor = 2
world_size = 2
[policy.optimizer]
lr = 1e-3
[data.train]
source = "reasoning_gym"
task = "chain_sum"
size = 16
options = {{ min_terms = 2, max_terms = 2, min_digits = 1, max_digits = 1 }}
[reward]
verifier = {{ kind = "random" }}
workers = 1
[objective]
clip = {{ low = 0.2, high = 0.28 }}
gate = {{ dual = 3.0 }}
auxiliary = {{ kl = {{ coefficient = 0.01, estimator = "k3" }} }}
[rollout]
max_prompt_tokens = 64
max_response_tokens = 8
cpu_kv_cache_gib = 0.25
publish = {{ bucket_mib = 4 }}
[train]
steps = 3
prompts_per_step = 4
samples_per_prompt = 4
mini_batch_responses = 8
[sft]
steps = 6
batch_examples = 16
optimizer = {{ lr = 3e-3 }}
"""


def write_tiny_config(directory: Path, model: Path) -> Path:
    """`directory/tiny.toml`, training the checkpoint `model`."""
    path = directory / "tiny.toml"
    path.write_text(TINY.format(model=model), encoding="utf-8")
    return path
