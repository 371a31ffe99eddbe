"""What a run's checkpoints need of the disk. Their real size: tests/policy/test_checkpoint_layouts.py."""

import pytest

from megarl.config.checkpoint import CheckpointConfig
from megarl.planning.checkpoint_size import left_checkpoints, most_checkpoints
from tests.controller.fakes import make_config


@pytest.mark.parametrize(
    ("saving", "most", "left"),
    [
        ({}, 0, 0),
        ({"keep_last": 5}, 0, 0),  # it saves nothing
        ({"every_steps": 10}, 3, 2),  # two are kept while the third is written
        ({"every_steps": 50}, 2, 2),
        ({"every_steps": 100, "keep_last": 1}, 1, 1),
        ({"every_minutes": 5.0, "keep_last": 4}, 5, 4),
        ({"every_steps": 10, "keep_best": "reward/mean", "keep_every_steps": 25}, 8, 7),
        ({"every_steps": 1, "keep_last": 1000}, 100, 100),
    ],
)
def test_checkpoints_at_a_time_and_in_the_end(saving: dict[str, object], most: int, left: int) -> None:
    config = make_config(steps=100).model_copy(update={"checkpoint": CheckpointConfig(**saving)})
    assert (most_checkpoints(config), left_checkpoints(config)) == (most, left)
