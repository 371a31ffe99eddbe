"""The schedule at its corners, by hand."""

import pytest

from megarl.config.policy import OptimizerConfig
from megarl.policy.optimizer import learning_rate


@pytest.mark.parametrize(("update", "expected"), [(1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0), (100, 1.0)])
def test_constant_after_a_linear_warm_up(update: int, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_updates=4)
    assert learning_rate(update, config=config, total_updates=100) == pytest.approx(expected)


@pytest.mark.parametrize(
    # Half a cosine from 1.0 at update 10 to 0.2 at update 110, the one after the last; a quarter of it:
    # 0.2 + 0.8 * (1 + sqrt(1/2)) / 2.
    ("update", "expected"),
    [(10, 1.0), (35, 0.8828427), (60, 0.6), (110, 0.2), (200, 0.2)],
)
def test_cosine_leads_to_the_minimum(update: int, expected: float) -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_updates=10, min_lr=0.2)
    assert learning_rate(update, config=config, total_updates=109) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 2), (0, 100), (1, 2), (3, 4), (10, 100)])
def test_no_update_has_rate_zero_and_the_peak_comes_once(schedule: str, warmup: int, total: int) -> None:
    """min_lr is 0 by default: an update at rate 0 would cost its passes and change nothing."""
    config = OptimizerConfig.model_validate({"lr": 1.0, "schedule": schedule, "warmup_updates": warmup})
    rates = [learning_rate(update, config=config, total_updates=total) for update in range(1, total + 1)]
    assert min(rates) > 0
    assert max(rates) == rates[max(warmup, 1) - 1] == 1.0
    if schedule == "cosine":
        assert rates.count(1.0) == 1
        assert learning_rate(total + 1, config=config, total_updates=total) == pytest.approx(0.0, abs=1e-15)


def test_a_run_of_two_updates_without_warm_up() -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(1, config=config, total_updates=2) == 1.0
    assert learning_rate(2, config=config, total_updates=2) == pytest.approx(0.5)


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    assert learning_rate(1, config=OptimizerConfig(lr=3e-4), total_updates=5) == pytest.approx(3e-4)
