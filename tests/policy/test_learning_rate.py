"""The schedule at its corners, by hand."""

import pytest

from megarl.config.policy import OptimizerConfig
from megarl.policy.optimizer import learning_rate


@pytest.mark.parametrize(("update", "expected"), [(1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0), (100, 1.0)])
def test_constant_after_a_linear_warm_up(update: int, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_updates=4)
    assert learning_rate(update, config=config, total_updates=100) == pytest.approx(expected)


@pytest.mark.parametrize(
    # Half a cosine from 1.0 at update 10 to 0.2 at update 110; a quarter of it: 0.2 + 0.8 * (1 + sqrt(1/2)) / 2.
    ("update", "expected"),
    [(10, 1.0), (35, 0.8828427), (60, 0.6), (110, 0.2), (200, 0.2)],
)
def test_cosine_ends_at_the_minimum(update: int, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_updates=10, min_lr=0.2)
    assert learning_rate(update, config=config, total_updates=110) == pytest.approx(expected)


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    assert learning_rate(1, config=OptimizerConfig(lr=3e-4), total_updates=5) == pytest.approx(3e-4)
