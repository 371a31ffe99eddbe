"""Where the difference of trainer and vLLM stops a run."""

import pytest

from megarl.config.run import RunConfig
from megarl.controller.mismatch import LogpDiff, LogpMismatchError, check_logp_diff
from megarl.telemetry.metrics import Mean
from tests.controller.fakes import make_config


def check(mean: float, **rollout: float) -> None:
    config: RunConfig = make_config()
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update=rollout)})
    difference = LogpDiff(mean=Mean(100 * mean, 100), largest=3 * mean)
    check_logp_diff(difference, step=1, config=config)


@pytest.mark.parametrize("mean", [1e-6, 0.01, 0.05])
def test_rounding_passes(mean: float) -> None:
    check(mean)


@pytest.mark.parametrize("mean", [0.14, 0.56, float("nan")])
def test_another_temperature_stops_the_run(mean: float) -> None:
    """0.14 to 0.56 nats were measured with temperature 0.7 on one side and 1 on the other."""
    with pytest.raises(LogpMismatchError, match=r"above rollout.max_logp_diff 0\.1\."):
        check(mean)


def test_inf_stops_nothing_but_nan() -> None:
    check(100.0, max_logp_diff=float("inf"))
    with pytest.raises(LogpMismatchError):
        check(float("nan"), max_logp_diff=float("inf"))
