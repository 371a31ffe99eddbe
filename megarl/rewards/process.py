"""The parent's end of one scoring process: start, ask with a time limit, kill, replace."""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Literal

from megarl.config.data import DataConfig
from megarl.records import Prompt
from megarl.rewards.item import RewardError
from megarl.rewards.verifiers import VerifierConfig
from megarl.rewards.worker import Failed, Ready, Scored, Taken

logger = logging.getLogger(__name__)
_START_TIMEOUT_S = 120.0
_START_ATTEMPTS = 3
_STDERR_FD = 2
# The parent's sys.path first, so that the user's module is found where the parent found it. Not `-m`: that, like
# multiprocessing's spawn, would run or search by the parent's main module, which may import torch.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from megarl.rewards.worker import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]))"
)

Failure = Literal["timeout", "crash"]


class _DiedAtStartError(RewardError):
    """The process ended before it was ready, without saying why."""


class ScoringProcess:
    """States: starting (after construction and after a failure) -> ready (after wait_ready) -> stopped.

    Used by one thread at a time, except `stop`, which any thread may call to end a question in progress.
    """

    def __init__(self, verifier: VerifierConfig, data: DataConfig) -> None:
        self._verifier, self._data = verifier, data
        self._lock = threading.Lock()  # whoever starts or ends the process holds it
        self._stopped = False
        self._ready = False
        self._life_write: int | None = None
        self._spawn()

    @property
    def pid(self) -> int:
        """Number of the process that answers now."""
        return self._process.pid

    def score(self, prompt: Prompt, response: str, *, timeout_s: float) -> Scored | Failed | Failure:
        """Ask once. After a time-out or a crash the process is replaced before this returns (not yet ready).

        RewardError when no process can be started or `stop` was called.
        """
        self._ask(prompt, response)
        try:
            if self._connection.poll(timeout_s):
                reply: Scored | Failed = self._connection.recv()
                return reply
            failure: Failure = "timeout"
        except (EOFError, OSError):
            failure = "crash"
        code = self._end()
        if self._stopped:
            raise RewardError("the reward pool was closed while it scored")
        if failure == "crash":
            logger.warning("a reward worker died with exit code %s; the answer scores 0", code)
        self._spawn()
        return failure

    def wait_ready(self) -> None:
        """Return when the verifier is built; RewardError when it cannot be."""
        if self._stopped:
            raise RewardError("the reward pool is closed")
        if self._ready:
            return
        try:
            reply = self._connection.recv() if self._connection.poll(_START_TIMEOUT_S) else None
        except (EOFError, OSError) as error:
            raise _DiedAtStartError(
                f"a reward worker died while starting, exit code {self._end()}; its messages are on stderr above"
            ) from error
        match reply:
            case Ready():
                self._ready = True
            case Failed(error=what, trace=trace):
                raise RewardError(f"a reward worker could not build its verifier: {what}\n{trace}")
            case _:
                raise RewardError(f"a reward worker was not ready after {_START_TIMEOUT_S:.0f} s; is the disk slow?")

    def stop(self) -> None:
        """End the process and whatever it started, for good; a question in progress then returns."""
        with self._lock:
            self._stopped = True
            self._kill()

    def close(self) -> None:
        """`stop`, then reap and release; the asking thread must have returned. Safe to call twice."""
        self.stop()
        self._end()

    def _ask(self, prompt: Prompt, response: str) -> None:
        """Return when the process has taken the question. One that was killed while idle or starting is no answer's
        fault: the question goes to a fresh one."""
        for attempts_left in reversed(range(_START_ATTEMPTS)):
            try:
                self.wait_ready()
                self._connection.send((prompt, response))
                self._await_taken()
                return
            except (_DiedAtStartError, EOFError, OSError) as error:
                if not attempts_left:
                    raise RewardError(
                        f"a reward worker died {_START_ATTEMPTS} times before it was asked; {error}"
                    ) from error
                logger.warning("an idle reward worker died with exit code %s and is replaced", self._end())
                self._spawn()

    def _await_taken(self) -> None:
        """EOFError or OSError where the process died before it read the question: the socket of a dying process may
        still accept one."""
        if not self._connection.poll(_START_TIMEOUT_S):
            raise RewardError(f"an idle reward worker took no question for {_START_TIMEOUT_S:.0f} s; is it stopped?")
        reply = self._connection.recv()
        if not isinstance(reply, Taken):
            raise RewardError(f"a reward worker answered {reply!r} before it had taken the question")

    def _spawn(self) -> None:
        with self._lock:
            if self._stopped:
                return
            self._ready = False
            ours, theirs = multiprocessing.Pipe()
            self._connection: Connection[Any, Any] = ours
            life_read, life_write = os.pipe()
            self._life_write = life_write
            data_fd = theirs.fileno()
            bootstrap = ["-X", "faulthandler", "-c", _BOOTSTRAP, json.dumps(sys.path), str(data_fd), str(life_read)]
            try:
                # A session of its own: Ctrl-C reaches the parent only, and the whole group can be killed at once.
                self._process = subprocess.Popen(
                    [sys.executable, *bootstrap],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR_FD,  # what a user function prints must not mix with the command's own output
                    pass_fds=(data_fd, life_read),
                    start_new_session=True,
                )
            finally:
                theirs.close()
                os.close(life_read)
        with contextlib.suppress(OSError):  # dead already: wait_ready tells
            self._connection.send((self._verifier, self._data))

    def _end(self) -> int:
        """Kill, reap and close our ends; returns the exit code."""
        with self._lock:
            self._kill()
            code = self._process.wait()
            self._connection.close()
            if self._life_write is not None:
                os.close(self._life_write)
                self._life_write = None
        return code

    def _kill(self) -> None:
        if self._process.returncode is None:  # not reaped yet, so the group's number is still ours
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
