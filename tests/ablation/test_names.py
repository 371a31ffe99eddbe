"""Names of settings are read without a key, and fit a file's name."""

import math
import re
from typing import Any

import pytest

from megarl.ablation.names import name_files, name_values, shorten_fields


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"objective.clip.low": 0.2, "objective.clip.high": 0.28}, "low0.2-high0.28"),
        ({"objective.clip.high": math.inf}, "highinf"),
        ({"policy.optimizer.lr": 1e-6}, "lr1e-06"),
        ({"policy.optimizer.lr": 0.12345678901}, "lr0.12345678901"),
        ({"train.steps": 30, "cluster.colocate": True}, "steps30-colocate-true"),
        ({"model.path": "models/Qwen2.5-7B/"}, "path-Qwen2.5-7B"),
        ({"objective.advantage": {"method": "grpo"}}, "advantage-grpo"),
        ({"reward.verifier": {}}, "verifier-on"),
        ({"cluster.offload": ["optimizer", "reference"]}, "offload-optimizer-reference"),
        ({"data.system_prompt": "Think: step by step!"}, "system_prompt-Think_step_by_step"),
        ({"objective.clip.low": -1}, "low-1"),
    ],
)
def test_a_value_is_named_after_the_end_of_its_field(values: dict[str, Any], name: str) -> None:
    found = name_values(values, shorten_fields(values))
    assert found == name
    assert re.fullmatch(r"[\w.-]+", found)


def test_fields_that_end_alike_are_told_apart() -> None:
    short = shorten_fields(["policy.optimizer.lr", "sft.optimizer.lr", "train.seed", "lr"])
    assert short == {
        "policy.optimizer.lr": "policy.optimizer.lr",
        "sft.optimizer.lr": "sft.optimizer.lr",
        "train.seed": "seed",
        "lr": "lr",
    }
    assert name_values({"policy.optimizer.lr": 0.1}, short) == "policy_optimizer_lr0.1"


def test_fragments_are_named_without_their_ending() -> None:
    assert name_files(["../methods/dapo.toml", "tis.toml"]) == "dapo-tis"
