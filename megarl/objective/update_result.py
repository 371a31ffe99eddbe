"""What an optimizer update tells the loop: the numbers that steer the run, as fields, and what is logged.

Metrics steer nothing: a name in metrics.jsonl can be changed or left out without changing what a run does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megarl.objective.loop_numbers import LoopChoice
from megarl.objective.token_sums import TokenSums, read_mean
from megarl.telemetry.metrics import Mean, Metrics, declared, merge


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """One update, or several together."""

    logp: Mean
    """log p of the response tokens, nats. Of a supervised update they are the answers' tokens, and minus its value is
    their cross-entropy."""
    kl: Mean
    """Estimate of the KL to the reference, nats; counts nothing where the run has none."""
    metrics: Metrics
    loop: LoopChoice | None = None
    """What a closed-loop clip chose; of several updates the last one's."""

    @classmethod
    def of(cls, sums: TokenSums, metrics: Metrics, *, loop: LoopChoice | None = None) -> "UpdateResult":
        """From the update's merged sums, what is logged of it, and what a closed loop chose."""
        return cls(
            logp=read_mean(sums, "logp", "tokens"),
            kl=read_mean(sums, "kl", "kl_tokens"),
            metrics=metrics | ({} if loop is None else _loop_metrics(sums, loop)),
            loop=loop,
        )


def merge_results(results: Sequence[UpdateResult]) -> UpdateResult:
    """The updates of a step together."""
    return UpdateResult(
        logp=sum((result.logp for result in results), Mean()),
        kl=sum((result.kl for result in results), Mean()),
        metrics=merge(*(result.metrics for result in results)),
        loop=results[-1].loop if results else None,
    )


def _loop_metrics(sums: TokenSums, loop: LoopChoice) -> Metrics:
    """What the loop wanted, what it foresaw and what the update's own pass has found."""
    budget = read_mean(sums, "budget", "tokens").total
    return declared(
        {
            "control/loop_knob": loop.knob,
            "control/loop_wanted": loop.wanted,
            "control/loop_predicted": loop.predicted,
            "control/loop_measured": budget / loop.size if loop.size else 0.0,
            "control/loop_entropy": loop.entropy,
        }
    )
