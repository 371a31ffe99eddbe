"""The run's saves: when, one at a time, beside training.

    policy ranks   |step 12|copy|step 13 ..........|
    their writers          |    write ........|
    driver                 |copy|             |metadata, manifest, rename, older ones removed|

Training waits for the copy alone, and for the save before where that is still being written. A save that fails is
told, what it has written is removed, the checkpoints before it stay, and the run goes on.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.manifest import Manifest, describe_config, finite
from megarl.checkpoint.retention import remove_superseded
from megarl.checkpoint.run_checkpoint import (
    PendingCheckpoint,
    RunCheckpoint,
    clear_unfinished,
    newest_checkpoint,
    total_bytes,
)
from megarl.checkpoint.saved import SavedState
from megarl.config.run import RunConfig
from megarl.controller.cadence import Cadence
from megarl.controller.progress import RunProgress
from megarl.controller.protocols import PolicyGroup
from megarl.controller.reporting import StepReporter
from megarl.controller.stopping import RunStoppedError, StopRequest
from megarl.telemetry.state import StateOwner
from megarl.telemetry.versions import collect_versions

_log = logging.getLogger(__name__)
_LANE = "checkpoint"


class SavedParts(Protocol):
    """What a save is of."""

    @property
    def policy(self) -> PolicyGroup: ...
    @property
    def reporter(self) -> StepReporter: ...
    @property
    def owners(self) -> Mapping[str, StateOwner]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Save:
    """One that is under way."""

    pending: PendingCheckpoint
    progress: RunProgress
    metrics: dict[str, float]
    telemetry: dict[str, object]
    began_s: float
    """Since 1970, as `Spans.now_s` tells it."""
    held_s: float
    """Seconds that training waited."""


class Checkpoints:
    """Saves of one run. States: idle -> copying -> writing -> idle; `save` waits for idle first."""

    def __init__(self, config: RunConfig, directory: Path, *, stop: StopRequest) -> None:
        """directory: `RunDirectory.checkpoints`. ConfigError where the end time cannot be told."""
        self._config, self._directory, self._stop = config, directory, stop
        self._cadence = Cadence(config.checkpoint, steps=config.train.steps)
        self._writing: asyncio.Task[None] | None = None
        self._complete: RunCheckpoint | None = None

    async def listen(self) -> None:
        """The loop begins: from now on a signal ends the run after a step. What was being written when an earlier
        process of the run ended is removed."""
        await asyncio.to_thread(clear_unfinished, self._directory)
        self._stop.listen(saves=self._config.checkpoint.on)
        self._cadence.begin()

    def stop_reason(self) -> str | None:
        """After a step: why it shall be the last; None where the run goes on."""
        self._cadence.end_step()
        return self.asked_to_stop or self._cadence.time_is_over()

    @property
    def asked_to_stop(self) -> str | None:
        """Why, where a signal has asked for it: also while the state was being copied, when no step is under way."""
        return self._stop.reason

    def due(self, step: int) -> bool:
        """Whether the run is saved after `step` in any case."""
        return self._cadence.save_due(step)

    async def save(self, step: int, policy_version: int, parts: SavedParts) -> RunProgress:
        """Copy the state after `step` and begin to write it; the progress that was copied. Training may go on then.

        Raises what went wrong with the step's own files.
        """
        began_s = parts.reporter.spans.now_s()
        self._cadence.begin_save()
        with parts.reporter.phase("checkpoint"):
            await self.settle()
            pending = PendingCheckpoint(self._directory, step=step)
            failure = await self._copy(pending, parts)
        progress = RunProgress.collect(parts.owners, step=step, policy_version=policy_version)
        if failure is not None:
            await self._give_up(pending, failure, parts)
            return progress
        metrics = finite(parts.reporter.logged)
        if (best := self._config.checkpoint.keep_best) is not None and best not in metrics:
            parts.reporter.warn(f"checkpoint.keep_best: step {step} has no number {best}, and cannot be the best")
        save = _Save(
            pending=pending,
            progress=progress,
            metrics=metrics,
            telemetry=parts.reporter.positions(),
            began_s=began_s,
            held_s=parts.reporter.spans.now_s() - began_s,
        )
        self._writing = asyncio.create_task(self._write(save, parts))
        return progress

    async def _copy(self, pending: PendingCheckpoint, parts: SavedParts) -> CheckpointError | None:
        """Copy the ranks' state, while the step's own files are written: a checkpoint speaks of them."""
        settled = asyncio.ensure_future(parts.reporter.settle())
        try:
            # About as much as the one before: only the ranks know, and each its part, once they have copied it.
            num_bytes = total_bytes(self._complete.manifest.files) if self._complete else 0
            await asyncio.to_thread(pending.begin, num_bytes=num_bytes)
            await parts.policy.stage_checkpoint(str(pending.path))
        except CheckpointError as error:
            return error
        finally:
            await settled
        return None

    async def _write(self, save: _Save, parts: SavedParts) -> None:
        """Never raises but for a cancellation: what a save meets costs the save and not the run."""
        try:
            saved = await parts.policy.finish_checkpoint()
            manifest = await asyncio.to_thread(self._manifest, save, saved)
            self._complete = await asyncio.to_thread(save.pending.complete, manifest)
        except Exception as error:
            await self._give_up(save.pending, error, parts)
            return
        end_s = parts.reporter.spans.now_s()
        self._cadence.end_save(end_s - save.began_s)
        parts.reporter.spans.record("save", start_s=save.began_s, end_s=end_s, lane=_LANE, step=manifest.step)
        size = total_bytes(manifest.files) / 2**30
        parts.reporter.note(
            f"saved  step {manifest.step}: {size:.2f} GiB in {end_s - save.began_s:.1f} s; training waited "
            f"{save.held_s:.2f} s"
        )
        await self._remove_superseded(parts)

    async def _remove_superseded(self, parts: SavedParts) -> None:
        try:
            await asyncio.to_thread(remove_superseded, self._directory, self._config.checkpoint)
        except OSError as error:
            parts.reporter.warn(f"a checkpoint that is not kept any more could not be removed: {error}")

    async def _give_up(self, pending: PendingCheckpoint, error: Exception, parts: SavedParts) -> None:
        await asyncio.to_thread(pending.discard)
        before = await asyncio.to_thread(self._describe_newest)
        text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        parts.reporter.warn(f"step {pending.step} is not saved: {text}\nThe run goes on; {before}")

    def _describe_newest(self) -> str:
        try:
            newest = newest_checkpoint(self._directory)
        except OSError as error:  # the disk that the save has failed on
            return f"what was saved before cannot be looked at ({error})"
        return f"the last one is that of step {newest.step}" if newest else "nothing is saved yet"

    def _manifest(self, save: _Save, saved: SavedState) -> Manifest:
        config, digest = describe_config(self._config)
        return Manifest(
            step=save.progress.step,
            policy_version=save.progress.policy_version,
            updates=saved.updates,
            optimizer_step=saved.optimizer_step,
            progress=save.progress.state_dict(),
            layout=saved.layout,
            model=saved.model,
            config=config,
            config_digest=digest,
            versions=collect_versions(),
            telemetry=save.telemetry,
            metrics=save.metrics,
            files=saved.files,
        )

    async def settle(self) -> None:
        """Wait until nothing is being written. A cancelled wait leaves the writing alone."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def stopped(self, step: int, reason: str) -> RunStoppedError:
        """What a run ends with that shall stop after `step`: when the save of that is complete, or has failed."""
        await self.settle()
        if self._complete is not None and self._complete.step == step:
            return RunStoppedError(f"{reason}: stopped after step {step}, saved in {self._complete.path}")
        return RunStoppedError(f"{reason}: stopped after step {step}, which could not be saved")

    async def abandon(self) -> None:
        """The run ends at once: what is being written is not waited for."""
        if self._writing is not None and not self._writing.done():
            self._writing.cancel()
            await asyncio.wait([self._writing])
