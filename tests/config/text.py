"""Configuration files for tests: a small valid one, and ways to write it."""

from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig

SMALL = """
name = "small"
[model]
path = "models/tiny"
[data.train]
source = "reasoning_gym"
task = "chain_sum"
[reward.verifier]
kind = "reasoning_gym"
[train]
prompts_per_step = 4
samples_per_prompt = 4
mini_batch_responses = 8
"""


def write_config(directory: Path, text: str = SMALL) -> Path:
    path = directory / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load_small(directory: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(directory), overrides)


def problems_of(path: Path, *overrides: str) -> list[str]:
    """The problems that loading reports; AssertionError when it loads."""
    try:
        load_config(path, overrides)
    except ConfigError as error:
        return list(error.problems)
    raise AssertionError(f"{path} with {overrides} loaded without an error")
