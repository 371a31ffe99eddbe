"""The learning rate that grows with the square root of the responses per update."""

import pytest

from megarl.config.policy import OptimizerConfig


def test_the_rate_is_scaled_by_the_square_root() -> None:
    scaled = OptimizerConfig(lr=1e-6, min_lr=2e-7, lr_for_responses=128).scaled(512)
    assert scaled.lr == pytest.approx(2e-6, rel=1e-12)
    assert scaled.min_lr == pytest.approx(4e-7, rel=1e-12)


def test_without_a_size_to_scale_from_nothing_changes() -> None:
    config = OptimizerConfig(lr=1e-6)
    assert config.scaled(512) is config
