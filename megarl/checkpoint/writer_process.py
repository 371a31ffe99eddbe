"""The rank's end of the process that writes its part of a checkpoint while the rank trains on.

A process of its own, started afresh and not forked: a fork would inherit the locks of the rank's threads (Ray's,
gloo's, CUDA's) as they are at that moment. It sees the staging memory and nothing else of the rank, and ends with it.
It stays for the next save; one that was killed is replaced by then.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.staging import StagingMemory
from megarl.checkpoint.writer_messages import Done, Failed, Reply, WriteRequest, parse_reply

_STDERR_FD = 2
_CHUNK_BYTES = 1 << 20
_KILL_S = 5.0
_ON_A_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# The rank's sys.path first, so that megarl is found where the rank found it.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from megarl.checkpoint.writer import main; "
    "main(*map(int, sys.argv[2:]))"
)


class WriterProcess:
    """States: absent -> running (from the first `write` on) -> absent (after a failure) -> closed.

    `write` is called by one thread at a time; `kill` and `close` by any.
    """

    def __init__(self, memory: StagingMemory) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._life_fd: int | None = None
        self._is_running = False

    @property
    def pid(self) -> int | None:
        """Of the process that waits or writes now."""
        return None if self._process is None else self._process.pid

    def write(self, request: WriteRequest, *, timeout_s: float) -> Done:
        """Have it written, and on the disk.

        Raises CheckpointError where it could not be, was not within the limit, or the process ended: then nobody
        writes there any more.
        """
        deadline = time.monotonic() + timeout_s
        process = self._running()
        try:
            reply = _ask(process, request.as_line(), deadline)
        except TimeoutError:
            self.kill()
            raise CheckpointError(
                f"the writer of policy rank {request.rank} had not written its part after {timeout_s:g} s "
                "(checkpoint.timeout_s); is the disk slow, or gone?"
            ) from None
        match reply:
            case Done():
                return reply
            case Failed(error=error):
                raise CheckpointError(f"policy rank {request.rank} could not write its part: {error}")
        raise CheckpointError(
            f"the process {process.pid} that writes the part of policy rank {request.rank} ended {self._describe_end()}"
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._is_running and self._process.poll() is None:
            return self._process
        self.close()
        life_read, self._life_fd = os.pipe()
        memory = self._memory
        arguments = [str(memory.descriptor), str(memory.num_bytes), str(life_read)]
        try:
            # A session of its own: Ctrl-C reaches the driver only, and the group can be ended as one.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=_STDERR_FD,
                pass_fds=(memory.descriptor, life_read),
                start_new_session=True,
                env={**os.environ, **_ON_A_CPU},
            )
        finally:
            os.close(life_read)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._is_running = True
        return self._process

    def _describe_end(self) -> str:
        self.kill()
        assert self._process is not None
        code = self._process.returncode
        if code is None:
            return f"its answers and is not gone after {_KILL_S:g} s: it waits for the disk"
        if code < 0:
            return f"by signal {signal.Signals(-code).name}"
        return f"with exit code {code}; the rank's log says why"

    def kill(self) -> None:
        """End the process, whatever it does; a `write` that waits for it raises."""
        process, self._is_running = self._process, False
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # One that waits for a disk that is gone cannot even be killed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_S)
        life_fd, self._life_fd = self._life_fd, None
        if life_fd is not None:
            os.close(life_fd)

    def close(self) -> None:
        """End it, and let go of what it was spoken to by."""
        self.kill()
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()


def _ask(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> Reply | None:
    """None where the process ended without an answer. TimeoutError after the deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answered, line = process.stdin.fileno(), process.stdout.fileno(), b""
    left = memoryview(request)
    try:
        while left:
            _wait_for(asked, select.POLLOUT, deadline)
            left = left[os.write(asked, left) :]
    except BrokenPipeError:  # it ended before it had read the request
        return None
    while not line.endswith(b"\n"):
        _wait_for(answered, select.POLLIN, deadline)
        data = os.read(answered, _CHUNK_BYTES)
        if not data:
            return None
        line += data
    return parse_reply(line)


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    """Until the pipe can take or give something, or is broken. TimeoutError after the deadline."""
    # Not select: a rank may have more open files than that can count.
    waiting = select.poll()
    waiting.register(descriptor, event)
    if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError
