"""A base model whose template ends turns with a token that the checkpoint does not declare, as Qwen2.5's: the end of a
turn ends a response, in the warm start as in sampling.
"""

import json
from pathlib import Path

import pytest

from megarl.telemetry.rollouts import read_rollouts
from tests.e2e.test_train import run_to_end

WARM_UP = [
    "sft.steps=80",
    "sft.batch_examples=64",
    'sft.optimizer={lr=3e-3, schedule="cosine", warmup_updates=10, min_lr=3e-4}',
    "data.train.size=48",
]


def declare_only_endoftext(checkpoint: Path) -> None:
    """What the files of a base model say: nothing of <|im_end|> but in the chat template."""
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "<|endoftext|>"}))
    for name in ("generation_config.json", "config.json"):
        content = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps(content | {"eos_token_id": 0}))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_templates_end_of_turn_ends_a_base_models_responses(tmp_path: Path, tiny_model_dir: Path) -> None:
    warm = run_to_end(tmp_path / "sft", "sft", tiny_model_dir, *WARM_UP)
    checkpoint = warm.directory.exports / "step-000080"
    declare_only_endoftext(checkpoint)
    trained = run_to_end(tmp_path / "train", "train", checkpoint, "train.steps=1", "train.prompts_per_step=16")
    (line,) = trained.metrics
    # Without the template's end every response is 8 tokens long.
    assert line["response_length/clip_ratio"] <= 0.05
    assert 2 <= line["response_length/mean"] <= 3
    assert "stops  <|im_end|> (id 2): the chat template's end of turn" in trained.text
    assert "!!!" not in trained.text
    rows = read_rollouts(trained.directory.rollouts_path(1))
    assert all(row.response_tokens[-1] == 2 for row in rows if row.stop_reason == "stop")
    assert not any("<|im_end|>" in row.response_text for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_responses_that_nothing_ends_are_told_after_the_first_step(tmp_path: Path, tiny_model_dir: Path) -> None:
    """A random model: nothing ends its responses but chance, here about one of a hundred."""
    sizes = ["train.steps=1", "train.prompts_per_step=16", "rollout.max_response_tokens=2"]
    trained = run_to_end(tmp_path / "train", "train", tiny_model_dir, *sizes)
    assert "!!! Likely cause: " in trained.text
    assert (
        "responses ran to rollout.max_response_tokens = 2." in (trained.directory.log_path("controller", 0)).read_text()
    )
