"""Where the difference of trainer and vLLM stops a run."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from megarl.config.run import RunConfig
from megarl.controller.mismatch import (
    _AT_ONCE,
    LogpDiff,
    LogpMismatchError,
    check_logp_diff,
    compute_logp_diff,
    compute_mean_entropy,
)
from megarl.records import Floats, Rollout, TokenScores
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


def make_responses(sizes: Sequence[int]) -> tuple[list[Rollout], list[TokenScores]]:
    draw = np.random.default_rng(0)

    def numbers(size: int) -> Floats:
        return draw.normal(size=size).astype(np.float32) * np.float32(10.0) ** draw.integers(-6, 3, size=size)

    rollouts = [
        Rollout(prompt=(1,), response=(2,) * size, behavior_logp=numbers(size), stop_reason="stop", policy_version=0)
        for size in sizes
    ]
    scores = [
        TokenScores(sample_id=at, old_logp=numbers(size), old_entropy=abs(numbers(size)))
        for at, size in enumerate(sizes)
    ]
    return rollouts, scores


def test_the_numbers_do_not_depend_on_how_many_responses_are_looked_at_together() -> None:
    """To the last bit those of one response after the other, token by token."""
    rollouts, scores = make_responses([3, 0, 2000, _AT_ONCE - 1, 1, _AT_ONCE + 5, 0, 4000, 5000, 0])
    total, largest = 0.0, 0.0
    for rollout, scored in zip(rollouts, scores, strict=True):
        pairs = zip(scored.old_logp.tolist(), rollout.behavior_logp.tolist(), strict=True)
        differences = [abs(one - other) for one, other in pairs]
        total += sum(differences[1:], differences[0]) if differences else 0.0
        largest = max([largest, *differences])
    count = sum(len(rollout.response) for rollout in rollouts)
    assert compute_logp_diff(rollouts, scores) == LogpDiff(mean=Mean(total, count), largest=largest)
    entropies = [entropy for scored in scores for entropy in scored.old_entropy.tolist()]
    assert compute_mean_entropy(scores) == math.fsum(entropies) / count


def test_another_number_of_log_probs_is_named_and_what_is_not_finite_gives_no_mean() -> None:
    rollouts, scores = make_responses([2, 3])
    with pytest.raises(ValueError, match="sample 1: 2 response tokens, 3 trainer log-probs"):
        compute_logp_diff([rollouts[0], rollouts[0]], scores)
    for wrong in (math.nan, math.inf):
        spoilt = replace(scores[1], old_entropy=(1.0, wrong, 2.0))
        assert math.isnan(compute_mean_entropy([scores[0], spoilt]))
        other = replace(scores[1], old_logp=(0.0, wrong, 0.0))
        assert not math.isfinite(compute_logp_diff(rollouts, [scores[0], other]).mean.total)
