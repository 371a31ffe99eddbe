"""What every process of a run is doing: in heartbeat.json as long as the run lives, and with Python stacks, in its
logs, when it ends because a worker does not go on.
"""

import asyncio
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from megarl.reshard.signals import TransportError
from megarl.runtime.failures import WorkerFailed
from megarl.runtime.roster import Roster
from megarl.telemetry.heartbeat import BEAT_S, IDLE, Heartbeat, ProcessBeat, write_heartbeat
from megarl.telemetry.phases import describe_phases, phase_table
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.spans import Spans
from megarl.telemetry.stacks import all_stacks, write_stacks

_LAST_BEAT_WAIT_S = 5.0

_log = logging.getLogger(__name__)


class Heart:
    """Of one run, in the process that drives it."""

    def __init__(
        self, directory: RunDirectory, spans: Spans, *, steps: int, overdue: Callable[[], bool] = lambda: False
    ) -> None:
        """spans: what the driver does is what they time. steps: of the whole run. overdue: whether a run that was
        cancelled should have ended by itself before."""
        self.roster = Roster()
        self._directory, self._spans, self._steps, self._overdue = directory, spans, steps, overdue
        self._step = 0
        self._idle_s = time.monotonic()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """While the block runs its event loop says so, and of whom it knows what, every few seconds."""
        # A thread of its own, which a disk that does not answer may hold for ever.
        due: queue.SimpleQueue[Heartbeat | None] = queue.SimpleQueue()
        writing = threading.Thread(target=self._write, args=(due,), name="megarl-heartbeat", daemon=True)
        writing.start()
        beating = asyncio.create_task(self._beat(due))
        try:
            yield
        finally:
            beating.cancel()
            due.put(self.look())
            due.put(None)
            await asyncio.to_thread(writing.join, _LAST_BEAT_WAIT_S)

    def look(self) -> Heartbeat:
        """All processes now."""
        driver = self._look_at_driver()
        processes = (driver, *self.roster.beats(step=self._step))
        return Heartbeat(written_s=time.time(), step=self._step, steps=self._steps, processes=processes)

    @asynccontextmanager
    async def explaining(self) -> AsyncIterator[None]:
        """Around what workers do, inside of what ends them. Where a worker fails, or is waited for too long, the phase
        and stacks of all go to a file before the workers end; a note on the error names it."""
        try:
            yield
        except (WorkerFailed, TransportError) as error:
            await self._explain(error)
            raise
        except asyncio.CancelledError as error:
            if self._overdue():
                await self._explain(error)
            raise

    async def _explain(self, error: BaseException) -> None:
        heartbeat = self.look()  # before the asking, which takes seconds
        texts = [
            await asyncio.to_thread(all_stacks, [asyncio.get_running_loop()], but=self.roster.pids),
            *await self.roster.tell_stacks(),
        ]
        told = [f"{beat.role} rank {beat.rank}\n{text}" for beat, text in zip(heartbeat.processes, texts, strict=True)]
        reason = str(error).partition("\n")[0] or "it was not done in time"
        try:
            path = write_stacks(
                self._directory.logs, "\n\n".join([reason, "\n".join(phase_table(heartbeat.processes)), *told])
            )
        except OSError as failed:
            error.add_note(f"Phases of all processes: {describe_phases(heartbeat.processes)} (not written: {failed})")
        else:
            _log.info("phases and stacks of all processes: %s", path)
            error.add_note(f"Phases of all processes: {describe_phases(heartbeat.processes)}\nTheir stacks: {path}")

    async def _beat(self, due: "queue.SimpleQueue[Heartbeat | None]") -> None:
        while True:
            if due.empty():  # else the disk is slower than the beats
                due.put(self.look())
            await asyncio.sleep(BEAT_S)

    def _write(self, due: "queue.SimpleQueue[Heartbeat | None]") -> None:
        said = False
        while (heartbeat := due.get()) is not None:
            try:
                write_heartbeat(self._directory.heartbeat_path, heartbeat)
            except OSError as error:
                if not said:
                    _log.warning("%s is not written: %s", self._directory.heartbeat_path, error)
                said = True

    def _look_at_driver(self) -> ProcessBeat:
        spans = self._spans.open()
        self._step = max([self._step, *(int(span.details["step"]) for span in spans if "step" in span.details)])
        phases = [span for span in spans if span.name != "step"] or spans
        now_s = time.monotonic()
        if phases:
            self._idle_s = now_s
        return ProcessBeat(
            role="controller",
            rank=0,
            node=socket.gethostname(),
            pid=os.getpid(),
            phase=", ".join(span.name for span in phases) or IDLE,
            for_s=round(max((span.for_s for span in phases), default=now_s - self._idle_s), 3),
            silent_s=0.0,
            step=self._step,
        )
