"""When the old log-probs need no pass of their own."""

from pathlib import Path

import pytest

from megarl.cli.show import derived_comments
from megarl.config.loader import load_config
from tests.config.text import write_config

FREE = {
    "plain": [],
    "kl": ["objective.auxiliary.kl={}"],
    "entropy bonus": ["objective.auxiliary.entropy={}"],
    "guided": ["objective.auxiliary.guided={}"],
    "sequence ratio": ["objective.ratio.level=sequence"],
    "behaviour ratio": ["objective.ratio.anchor=behavior"],
    "flexec": ['objective.clip={kind="flexec", schedule="did"}'],
    "scale": ["objective.weights.positive_scale={}"],
    "reset": ["objective.auxiliary.kl={}", "objective.controllers.reference_reset={every_steps=2}"],
}
NEEDED = {
    "survey of a weight": ["objective.weights.steer={}"],
    "survey of bounds": ['objective.clip={kind="bapo"}'],
    "mismatch": ["objective.weights.tis={}"],
    "rejection": ["objective.weights.sequence_rejection={}"],
    "oscillation": ['objective.clip={kind="flexec", schedule="od"}'],
    "entropy coefficient": ["objective.auxiliary.entropy={}", "objective.controllers.entropy_coefficient={}"],
    "aer": ["objective.auxiliary.entropy={}", "objective.controllers.aer={}"],
    "stare": ["objective.weights.stare={}", "objective.controllers.stare={}"],
    "moved scale": ["objective.weights.positive_scale={}", "objective.controllers.positive_scale={}"],
}


def said(tmp_path: Path, overrides: list[str], *, updates: int = 1) -> tuple[bool, str]:
    """(whether the pass is left out, what `show` says of it)."""
    path = write_config(tmp_path)
    train = load_config(path, overrides).train
    config = load_config(path, [*overrides, f"train.mini_batch_responses={train.responses_per_step // updates}"])
    assert config.train.updates_per_step == updates
    (line,) = [line for line in derived_comments(config)["train"] if line.startswith("old log-probs")]
    return config.scores_in_update, line


@pytest.mark.parametrize("overrides", FREE.values(), ids=FREE)
def test_one_update_needs_none(tmp_path: Path, overrides: list[str]) -> None:
    left_out, line = said(tmp_path, overrides)
    assert left_out
    assert line.startswith("old log-probs: the update's own forward gives them")


@pytest.mark.parametrize("overrides", NEEDED.values(), ids=NEEDED)
def test_what_reads_them_before_the_update_has_one(tmp_path: Path, overrides: list[str]) -> None:
    left_out, line = said(tmp_path, overrides)
    assert not left_out
    assert line == (
        "old log-probs: a forward pass of their own; the objective chooses tokens or sets numbers by it before the "
        "update"
    )


def test_several_updates_have_one(tmp_path: Path) -> None:
    assert said(tmp_path, [], updates=2) == (
        False,
        "old log-probs: a forward pass of their own before the first of several updates",
    )
