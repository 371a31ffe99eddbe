"""The real loss and what the accounting says of it, for tests of the numbers."""

from typing import Any

from megarl.config.objective import ObjectiveConfig
from megarl.objective.accounting import collect_token_sums
from megarl.objective.loss import compute_token_loss
from megarl.objective.token_sums import (
    to_metrics,
)
from megarl.objective.tokens import Choices, Controls, TokenBatch, TokenLoss
from megarl.telemetry.metrics import Mean, Metrics
from tests.objective.simulated_ranks import SingleRank

OBJECTIVE = {"clip": {"low": 0.25, "high": 0.5}, "gate": {"dual": 3.0}}


def compute(tokens: TokenBatch, *, choices: Choices | None = None, **objective: Any) -> TokenLoss:
    """The real loss with `OBJECTIVE`, `objective` on top."""
    config = ObjectiveConfig.model_validate(OBJECTIVE | objective)
    return compute_token_loss(config, Controls(step=1, seed=0), tokens, choices or Choices.none(tokens.logp_T))


def pairs(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """Name -> (total, count); of what is no mean (value, 1)."""
    return {
        name: (metric.total, metric.count) if isinstance(metric, Mean) else (metric.value, 1.0)
        for name, metric in metrics.items()
    }


def metrics_of(tokens: TokenBatch, loss: TokenLoss) -> dict[str, tuple[float, float]]:
    return pairs(to_metrics(collect_token_sums(tokens, loss, SingleRank())))
