"""What the replicas of an update report becomes one set of metrics."""

import pytest
import torch

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_sums import TokenSums
from megarl.objective.tokens import Choices, Controls, Rule
from megarl.policy.reports import UpdateReport
from megarl.runtime.policy_actors import merge_reports
from megarl.telemetry.metrics import Max, Mean, Min
from tests.objective.tokens import make_tokens


class Alone:
    """The quintiles are not looked at here, so each replica may take its own."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    max = sum


def report(logp: list[float], advantage: float) -> UpdateReport:
    tokens = make_tokens([len(logp)], logp=logp, old_logp=-1.0, advantage=advantage, entropy=[1.0] * len(logp))
    objective = ObjectiveConfig.model_validate({"clip": {"low": 0.2, "high": 0.2}})
    loss = compute_token_loss(objective, Controls(step=1, seed=0), tokens, Choices.none(tokens.logp_T))
    sums: TokenSums = collect_token_sums(tokens, loss, Alone())
    return UpdateReport(sums=sums, grad_norm=3.0, lr=1e-6)


def test_replicas_of_unequal_size_merge_as_one_batch() -> None:
    # Ratios e^0.5 (clipped high) and 1, 1 on the first replica; e^-0.5 (clipped low) on the second.
    result = merge_reports(
        [report([-0.5, -1.0, -1.0], 1.0), report([-1.5], -1.0)], rules=Rule.CLIP_LOW | Rule.CLIP_HIGH
    )
    metrics = result.metrics
    assert metrics["clip_ratio/high_mean"].value == pytest.approx(1 / 4)
    assert metrics["clip_ratio/low_mean"].value == pytest.approx(1 / 4)
    assert metrics["actor/logp"].value == pytest.approx(-4.0 / 4)
    assert metrics["actor/ratio_max"] == Max(pytest.approx(1.6487212707))
    assert metrics["actor/ratio_min"] == Min(pytest.approx(0.6065306597))
    assert metrics["actor/grad_norm"].value == 3.0
    # What steers are fields, sums and counts of both replicas; there is no reference.
    assert result.logp == Mean(pytest.approx(-4.0), 4.0)
    assert result.kl == Mean(0.0, 0.0)
