"""What a step leaves behind: a line, a metrics row, the rollouts, the state."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.config.rollout_files import rollouts_interval
from megarl.config.run import RunConfig
from megarl.controller.progress import RunProgress
from megarl.records import Rollout, Sample, Score, TokenScores, TokenTrace
from megarl.rewards.item import RewardItem
from megarl.telemetry.console import Console, Phase
from megarl.telemetry.metrics import Mean, Metrics, declared, to_values
from megarl.telemetry.rollouts import RolloutColumns, write_rollouts
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import Sinks
from megarl.telemetry.spans import Spans
from megarl.telemetry.state import check_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """Everything one RL step produced; the sequences are parallel, one entry per response."""

    step: int
    policy_version: int
    """Of the weights after the step's updates."""
    items: Sequence[RewardItem]
    rollouts: Sequence[Rollout]
    samples: Sequence[Sample]
    scores: Sequence[Score]
    token_scores: Sequence[TokenScores]
    traces: Sequence[TokenTrace]
    """Of the responses that were traced, in any order; their sample ids are positions in the other sequences."""
    token_texts: Mapping[int, tuple[str, ...]]
    """By sample id, of the traced responses: the text of each response token alone."""
    metrics: Metrics


class StepReporter:
    """Writes steps to the console, the sinks and the run directory."""

    def __init__(
        self,
        *,
        config: RunConfig,
        directory: RunDirectory,
        console: Console,
        sinks: Sinks,
        update_sinks: Sinks,
        spans: Spans,
    ) -> None:
        self._config, self._directory, self._console = config, directory, console
        self._sinks, self._update_sinks = sinks, update_sinks
        self.spans = spans
        self._id = directory.run_id  # once: a file that is lost meanwhile costs no save
        self._writing: asyncio.Task[None] | None = None
        self.logged: Mapping[str, float] = {}
        """The metrics of the last step that was written."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """A phase of a step: timed as `timing_s/<name>` and shown as a progress bar."""
        with self.spans.measure(name), self._console.phase(name, total) as phase:
            yield phase

    @contextmanager
    def start_up(self, what: str) -> Iterator[None]:
        """A part of the start-up: shown, its seconds printed, drawn in the timeline on a lane of its own."""
        with self._console.phase(what, announce=True), self.spans.draw(what, lane=what):
            yield

    def warn(self, text: str) -> None:
        """Something is likely wrong, but the run goes on: on the display, set apart, and in the log."""
        logger.warning("%s", text)
        self._console.warn(text)

    def note(self, text: str) -> None:
        """Something that a person may want to know, on the display and in the log."""
        logger.debug("%s", text)
        self._console.note(text)

    def export_path(self, step: int) -> Path:
        """Directory of the Hugging Face checkpoint of a step."""
        return self._directory.exports / f"step-{step:06d}"

    def evaluation_path(self, step: int) -> Path:
        """Directory of the answers to benchmarks of the weights after a step."""
        return self._directory.evaluations / f"step-{step:06d}"

    def weights_name(self, step: int) -> str:
        """By which those who compare answers know the weights after a step."""
        return f"run {self._id}, step {step}"

    async def report_start(self, metrics: Metrics) -> None:
        """What was measured of the weights that the run begins with: a row of step 0, without a line of its own."""
        await self.settle()
        values = to_values(metrics | self.spans.collect())
        self._sinks.log(0, values)
        self.logged = values

    def positions(self) -> dict[str, Any]:
        """JSON-able, between two steps when what was reported is settled: the run's id, and how many bytes its files of
        rows have, which are on the disk then, if the disk takes them."""
        for sinks in (self._sinks, self._update_sinks):
            sinks.flush()
        return {"id": self._id, "bytes": self._sinks.positions() | self._update_sinks.positions()}

    def report_update(self, step: int, update: int, metrics: Metrics) -> None:
        """One optimizer update of an RL step; `update` counts from 0 in the step."""
        self._update_sinks.log(step, {"update": float(update), **to_values(metrics)})

    async def report(self, record: StepRecord) -> None:
        """One RL step, whose rollouts and metrics are written beside what comes next; `settle` waits for them, and
        raises what went wrong with them. The step counts as finished once it is committed. Of the record only what is
        written is kept, in columns: its responses are no objects any more."""
        await self.settle()
        due = rollouts_due(record.step, self._config)
        # A thread remembers its arguments for a while after the answer: not the record, which it takes out of the list.
        metrics, columns = await asyncio.to_thread(_take_apart, [record], self.spans.collect(), rollouts=due)
        self._writing = asyncio.create_task(self._write(record.step, metrics, columns))

    def commit(self, progress: RunProgress) -> None:
        """All that the step leaves is written, but for what was reported: when that is, state.json says `progress`."""
        self._writing = asyncio.create_task(self._commit(progress, self._writing))

    async def settle(self) -> None:
        """Wait until all that was reported is written. A cancelled wait leaves the writing alone."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            written, self._writing = self._writing, None
            written.result()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what the files lack. All else of a step is in them."""
        return {"metrics": self._sinks.state_dict(), "updates": self._update_sinks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. ValueError when it has other keys."""
        check_keys(state, self.state_dict(), what="reporter")
        self._sinks.load_state_dict(state["metrics"])
        self._update_sinks.load_state_dict(state["updates"])

    async def _commit(self, progress: RunProgress, written: asyncio.Task[None] | None) -> None:
        if written is not None:
            await written
        # What became of the step's own line is known only now.
        progress = replace(progress, owners={**progress.owners, "reporter": self.state_dict()})
        self._directory.write_state(RunState(status="running", step=progress.step, progress=progress.state_dict()))

    async def _write(self, step: int, metrics: Metrics, columns: RolloutColumns | None) -> None:
        """Rollouts, where they are due, then what speaks of them: nobody may read of a step whose responses are not yet
        there."""
        if columns is not None:
            start_s = self.spans.now_s()
            await asyncio.to_thread(write_rollouts, self._directory.rollouts_path(step), columns)
            end_s = self.spans.now_s()
            self.spans.record("write", start_s=start_s, end_s=end_s, lane="files", step=step)
            metrics |= declared({"timing_s/write": end_s - start_s})
        self._log(step, metrics)

    def report_sft(self, step: int, *, loss: float, metrics: Metrics, num_tokens: int) -> None:
        """One supervised update; `loss` is the mean cross-entropy per answer token in nats. It counts as finished once
        it is committed."""
        timings = self.spans.collect()
        kept = {name: metrics[name] for name in ("actor/entropy", "actor/grad_norm", "actor/lr")}
        more = declared({"sft/loss": loss, "perf/tokens_per_s": _rate(num_tokens, timings)})
        self._log(step, {**kept, **timings, **more})

    def _log(self, step: int, metrics: Metrics) -> None:
        values = to_values(metrics)
        self._sinks.log(step, values)
        self.logged = values
        self._console.step_line({"step": step, **values})


def _take_apart(
    handed_over: list[StepRecord], timings: Metrics, *, rollouts: bool
) -> tuple[Metrics, RolloutColumns | None]:
    record = handed_over.pop()
    return _step_metrics(record, timings), rollout_columns(record) if rollouts else None


def _step_metrics(record: StepRecord, timings: Metrics) -> Metrics:
    tokens = sum(sample.length for sample in record.samples)
    return {
        **record.metrics,
        **reward_metrics(record.scores),
        **length_metrics(record.rollouts),
        **timings,
        **declared({"perf/tokens_per_s": _rate(tokens, timings), "policy_version": record.policy_version}),
    }


def rollouts_due(step: int, config: RunConfig) -> bool:
    """Whether the step's responses are written: every so many steps, never where that is 0."""
    every = rollouts_interval(config)
    return every > 0 and step % every == 0


def _rate(tokens: int, timings: Metrics) -> Mean:
    return Mean(float(tokens), timings["timing_s/step"].value)


def reward_metrics(scores: Sequence[Score]) -> Metrics:
    """Rewards of a step's responses."""
    rewards = [score.reward for score in scores]
    return declared(
        {
            "reward/mean": rewards,
            "reward/std": rewards,
            "reward/max": max(rewards),
            "reward/verifier_mean": (score.verifier for score in scores),
            "reward/correct_mean": (bool(score.correct) for score in scores),
            "reward/overlong_mean": (score.overlong for score in scores),
            "reward/timeouts": sum(score.failure == "timeout" for score in scores),
            "reward/crashes": sum(score.failure == "crash" for score in scores),
        }
    )


def length_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """Lengths in tokens; response_length/clip_ratio is the share of responses cut off at the limit."""
    lengths = [len(rollout.response) for rollout in rollouts]
    return declared(
        {
            "response_length/mean": lengths,
            "response_length/max": max(lengths),
            "response_length/clip_ratio": (rollout.stop_reason == "length" for rollout in rollouts),
            "prompt_length/mean": (len(rollout.prompt) for rollout in rollouts),
        }
    )


def rollout_columns(record: StepRecord) -> RolloutColumns:
    """The step's responses as the columns of its parquet file."""
    ids = range(len(record.rollouts))
    traces = {trace.sample_id: trace for trace in record.traces}
    return {
        "step": [record.step] * len(ids),
        "prompt_index": [item.prompt.index for item in record.items],
        "sample_index": [item.sample_index for item in record.items],
        "sample_id": ids,
        "policy_version": [rollout.policy_version for rollout in record.rollouts],
        "prompt_text": [item.prompt.text for item in record.items],
        "response_text": [item.response for item in record.items],
        "prompt_tokens": _of_one_array([rollout.prompt for rollout in record.rollouts]),
        "response_tokens": _of_one_array([rollout.response for rollout in record.rollouts]),
        "token_text": [record.token_texts.get(number) for number in ids],
        "behavior_logp": _of_one_array([rollout.behavior_logp for rollout in record.rollouts]),
        "old_logp": _of_one_array([tokens.old_logp for tokens in record.token_scores]),
        "old_entropy": _of_one_array([tokens.old_entropy for tokens in record.token_scores]),
        "ref_logp": _of_one_array([tokens.ref_logp for tokens in record.token_scores]),
        "trace": [traces.get(number) for number in ids],
        "reward": [score.reward for score in record.scores],
        "verifier_reward": [score.verifier for score in record.scores],
        "overlong": [score.overlong for score in record.scores],
        "bonus": [score.bonus for score in record.scores],
        "failure": [score.failure for score in record.scores],
        "advantage": [sample.advantage for sample in record.samples],
        "stop_reason": [rollout.stop_reason for rollout in record.rollouts],
    }


def _of_one_array(cells: Sequence[NDArray[Any] | None]) -> list[NDArray[Any] | None]:
    """The same numbers, as pieces of one array. As they came they are pieces of the messages that brought them, each
    with memory of its own, which Python's garbage collector would look at after the step while the file is still
    written."""
    given = [cell for cell in cells if cell is not None]
    if not given:
        return list(cells)
    pieces = iter(np.split(np.concatenate(given), np.cumsum([len(cell) for cell in given[:-1]])))
    return [None if cell is None else next(pieces) for cell in cells]
