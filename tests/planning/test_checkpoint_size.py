"""What a run's checkpoints need of the disk. Their real size: tests/policy/test_checkpoint_layouts.py."""

import pytest

from megarl.config.checkpoint import CheckpointConfig
from megarl.planning.checkpoint_size import most_checkpoints
from tests.controller.fakes import make_config


@pytest.mark.parametrize(
    ("saving", "count"),
    [
        ({}, 0),
        ({"keep_last": 5}, 0),  # it saves nothing
        ({"every_steps": 10}, 3),  # two are kept while the third is written
        ({"every_steps": 50}, 2),
        ({"every_minutes": 5.0, "keep_last": 4}, 5),
        ({"every_steps": 10, "keep_best": "reward/mean", "keep_every_steps": 25}, 8),
        ({"every_steps": 1, "keep_last": 1000}, 100),
    ],
)
def test_checkpoints_at_a_time(saving: dict[str, object], count: int) -> None:
    config = make_config(steps=100).model_copy(update={"checkpoint": CheckpointConfig(**saving)})
    assert most_checkpoints(config) == count
