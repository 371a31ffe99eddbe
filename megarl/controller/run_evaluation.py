"""Evaluation inside a run: on its own engines, with the weights that they have, between two steps.

What a step's evaluation measures is in the step's row of metrics.jsonl, beside what its training did; of the weights
that the run began with, in a row of step 0. A run that goes on after a step has the evaluations up to it.
"""

import functools

from megarl.config.run import RunConfig
from megarl.controller.parts import Parts
from megarl.controller.regeneration import generate
from megarl.evaluation.table import summary_line
from megarl.telemetry.metrics import Metrics, merge


async def evaluate_after(step: int, config: RunConfig, parts: Parts) -> Metrics:
    """`eval/<benchmark>/<measure>` of the weights after `step`, which the engines have; nothing where it is not due."""
    if parts.evaluator is None or not parts.evaluator.due(step):
        return {}
    summaries = await parts.evaluator.evaluate(
        parts.reporter.evaluation_path(step),
        model=parts.reporter.weights_name(step),
        ask=functools.partial(generate, parts=parts, rounds=config.rollout.restarts),
        reporter=parts.reporter,
    )
    for summary in summaries:
        parts.reporter.note(f"eval   step {step}: {summary_line(summary)}")
    return merge(*(summary.metrics() for summary in summaries))


async def evaluate_start(config: RunConfig, parts: Parts) -> None:
    """Of the weights that the run begins with, as step 0."""
    if measured := await evaluate_after(0, config, parts):
        await parts.reporter.report_start(measured)
