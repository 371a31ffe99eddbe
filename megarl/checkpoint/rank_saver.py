"""The saves of one rank, one at a time: copy the state, then have it written while the rank trains on."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.checkpoint.staging import StagedPiece, StagingMemory, StatePiece, plan_staging
from megarl.checkpoint.writer_messages import Done, WriteRequest
from megarl.checkpoint.writer_process import WriterProcess

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPart:
    """What one rank has written."""

    result: Any
    """Of `dist_writer`, for the metadata of all ranks."""
    staged_bytes: int
    """Host memory that the copy takes."""


class RankSaver:
    """States: idle -> writing (`stage`) -> idle (`finish` or `abandon`) -> ... -> closed.

    `stage` is called where the state is not changed meanwhile; `finish` may wait in another thread.
    """

    def __init__(self, rank: int, *, timeout_s: float) -> None:
        """timeout_s: checkpoint.timeout_s."""
        self._rank, self._timeout_s = rank, timeout_s
        self._memory: StagingMemory | None = None
        self._writer: WriterProcess | None = None
        self._writing: Future[Done] | None = None

    @property
    def writer_pid(self) -> int | None:
        """Of the process that writes, or waits for the next save."""
        return None if self._writer is None else self._writer.pid

    def stage(self, pieces: Sequence[StatePiece], directory: Path) -> None:
        """Copy the pieces and begin to write them into `directory`; they may change when this returns.

        Raises CheckpointError where there is no memory for the copy: nothing is being written then.
        """
        if self._writing is not None:
            raise RuntimeError("stage before the save before was finished or abandoned")
        staged, num_bytes = plan_staging(pieces)
        memory, writer = self._made(num_bytes)
        memory.fill(pieces, staged)
        self._writing = Future()
        arguments = (self._writing, writer, directory, staged)
        # A daemon: a rank that ends does not wait for it.
        threading.Thread(target=self._write, args=arguments, name="megarl-save", daemon=True).start()

    def _write(
        self, written: Future[Done], writer: WriterProcess, directory: Path, staged: Sequence[StagedPiece]
    ) -> None:
        try:
            # Made here, too: of a large model it is megabytes of text.
            request = WriteRequest(directory=str(directory), rank=self._rank, pieces=staged)
            written.set_result(writer.write(request, timeout_s=self._timeout_s))
        except BaseException as error:
            written.set_exception(error)

    def _made(self, num_bytes: int) -> tuple[StagingMemory, WriterProcess]:
        """Memory that is large enough, and the process that reads it."""
        if self._memory is None or self._writer is None or self._memory.num_bytes < num_bytes:
            self._release()
            self._memory = StagingMemory(max(num_bytes, 1))
            self._writer = WriterProcess(self._memory)
        return self._memory, self._writer

    def finish(self) -> WrittenPart:
        """When all of it is on the disk. CheckpointError, once nobody writes any more, where that could not be."""
        if self._writing is None:
            raise RuntimeError("finish before stage")
        writing = self._writing
        try:
            result = writing.result().result
        finally:
            self._writing = None
        assert self._memory is not None
        return WrittenPart(result=result, staged_bytes=self._memory.num_bytes)

    def abandon(self) -> None:
        """Stop writing, if anything is being written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        while not writing.done():
            if self._writer is not None:  # again and again: it may be starting just now
                self._writer.kill()
            wait([writing], timeout=_POLL_S)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._memory is not None:
            self._memory.close()
        self._memory, self._writer = None, None

    def close(self) -> None:
        """End the process and give the memory back."""
        self.abandon()
        self._release()
