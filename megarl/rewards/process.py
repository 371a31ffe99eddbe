"""The parent's end of one scoring process: start, ask with a time limit, kill, replace."""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.config.reward import FunctionReward, RewardConfig
from megarl.records import Failure
from megarl.rewards.environment import worker_environment
from megarl.rewards.item import RewardError
from megarl.rewards.messages import OUT_OF_MEMORY_EXIT, Checked, Failed, GroundTruth, Question, Ready, Scored, Taken
from megarl.telemetry.process_mark import is_stopped

logger = logging.getLogger(__name__)
_START_TIMEOUT_S = 120.0
_TAKEN_TIMEOUT_S = 30.0
_START_ATTEMPTS = 3
_ASKED_AT_MOST = 3
"""How often a question is asked of processes that were ended or stopped from outside while they answered: one that has
that done to its process is not asked for ever."""
_OWN_SIGNALS = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP,
    signal.SIGPIPE, signal.SIGXCPU,
}  # fmt: skip
"""By which a process ends for what it does itself."""
_STDERR_FD = 2
# The parent's sys.path first, so that the user's module is found where the parent found it. Not `-m`: that, like
# multiprocessing's spawn, would run or search by the parent's main module, which may import torch.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from megarl.rewards.worker import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]))"
)


class _NotTakenError(RewardError):
    """The process ended, or stood still, before it was asked."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The process ended, or was ended, without an answer."""

    failure: Failure
    pid: int
    how: str
    from_outside: bool
    """It is no answer's fault."""


class ScoringProcess:
    """States: starting (after construction and `restart`) -> ready (after wait_ready) -> ended (after a failure, until
    `restart` or the next question) -> stopped.

    Used by one thread at a time, except `stop`, which any thread may call to end a question in progress.
    """

    def __init__(self, config: RewardConfig, data: DataConfig | None) -> None:
        self._config, self._data = config, data
        self._lock = threading.Lock()  # whoever starts or ends the process holds it
        self._stopped = False
        self._ready = False
        self._life_write: int | None = None
        self._spawn()

    @property
    def pid(self) -> int:
        """Number of the process that answers now."""
        return self._process.pid

    def score(
        self, question: Question, *, timeout_s: float, slow_s: float, on_slow: Callable[[], None]
    ) -> Scored | Failed | Failure:
        """Ask; `on_slow` is called when the answer takes longer than `slow_s`. After a time-out or a crash the process
        has ended. A process that something else ends, or stops until `timeout_s`, costs no answer: a fresh one is
        asked.

        RewardError when no process can be started or `stop` was called.
        """
        reply = self._ask(question, timeout_s=timeout_s, slow_s=min(slow_s, timeout_s), on_slow=on_slow)
        if isinstance(reply, Checked):
            raise RewardError(f"a reward worker answered {reply!r} to a response")
        return reply

    def check(self, answer: str, *, timeout_s: float) -> Checked | Failed | Failure:
        """Whether the verifier can read a ground truth; otherwise as `score`."""
        reply = self._ask(GroundTruth(answer), timeout_s=timeout_s, slow_s=timeout_s, on_slow=lambda: None)
        if isinstance(reply, Scored):
            raise RewardError(f"a reward worker answered {reply!r} to a ground truth")
        return reply

    def restart(self) -> None:
        """Start a fresh process where the last one has ended; it is not yet ready."""
        if self._life_write is None:
            self._spawn()

    def wait_ready(self) -> None:
        """Return when the verifier is built; RewardError, or its own ConfigError, when it cannot be."""
        if self._stopped:
            raise RewardError("the reward pool is closed")
        self.restart()
        if self._ready:
            return
        try:
            reply = self._connection.recv() if self._connection.poll(_START_TIMEOUT_S) else None
        except (EOFError, OSError) as error:
            raise _NotTakenError(
                f"a reward worker died while starting, exit code {self._end()}; its messages are on stderr above"
            ) from error
        match reply:
            case Ready():
                self._ready = True
            case Failed(error=what, kind="config"):
                raise ConfigError(what)
            case Failed(error=what, trace=trace):
                raise RewardError(f"a reward worker could not build its verifier: {what}\n{trace}")
            case _ if is_stopped(self.pid):
                raise _NotTakenError(f"reward worker {self.pid} was stopped while it started")
            case _:
                raise RewardError(
                    f"reward worker {self.pid} was not ready after {_START_TIMEOUT_S:.0f} s; is it stopped, does the "
                    "reward function's module wait for something, or is the disk slow?"
                )

    def stop(self) -> None:
        """End the process and whatever it started, for good; a question in progress then returns."""
        with self._lock:
            self._stopped = True
            self._kill()

    def close(self) -> None:
        """`stop`, then reap and release; the asking thread must have returned. Safe to call twice."""
        self.stop()
        self._end()

    def _ask(
        self, question: Question | GroundTruth, *, timeout_s: float, slow_s: float, on_slow: Callable[[], None]
    ) -> Scored | Checked | Failed | Failure:
        for attempts_left in reversed(range(_ASKED_AT_MOST)):
            answer = self._ask_once(question, timeout_s=timeout_s, slow_s=slow_s, on_slow=on_slow)
            if not isinstance(answer, _Lost):
                return answer
            again = answer.from_outside and attempts_left
            if again or answer.failure == "crash":
                what = "; a fresh one is asked" if again else ""
                logger.warning("reward worker %d %s while it scored%s", answer.pid, answer.how, what)
            if not again:
                return answer.failure
        raise AssertionError("the last attempt returns")

    def _ask_once(
        self, question: Question | GroundTruth, *, timeout_s: float, slow_s: float, on_slow: Callable[[], None]
    ) -> Scored | Checked | Failed | _Lost:
        self._hand_over(question)
        failure: Failure = "timeout"
        try:
            answered = self._connection.poll(slow_s)
            if not answered:
                on_slow()
                answered = self._connection.poll(timeout_s - slow_s)
            if answered:
                reply: Scored | Checked | Failed = self._connection.recv()
                return reply
        except (EOFError, OSError):
            failure = "crash"
        pid, stopped = self.pid, is_stopped(self.pid)
        code = self._end()
        if self._stopped:
            raise RewardError("the reward pool was closed while it scored")
        if failure == "timeout":
            return _Lost(failure, pid, "was stopped", from_outside=stopped)
        from_outside = code < 0 and -code not in _OWN_SIGNALS
        return _Lost(failure, pid, self._describe_exit(code), from_outside=from_outside)

    def _hand_over(self, question: Question | GroundTruth) -> None:
        """Return when the process has taken the question. One that was killed or stopped while idle or starting is no
        answer's fault: the question goes to a fresh one."""
        for attempts_left in reversed(range(_START_ATTEMPTS)):
            try:
                self.wait_ready()
                self._connection.send(question)
                self._await_taken()
                return
            except (_NotTakenError, EOFError, OSError) as error:
                pid, code = self.pid, self._end()
                if not attempts_left:
                    raise RewardError(
                        f"reward workers died or stood still {_START_ATTEMPTS} times before they took a question, the "
                        f"last was process {pid}; {error}"
                    ) from error
                logger.warning("idle reward worker %d took no question (exit code %s) and is replaced", pid, code)

    def _await_taken(self) -> None:
        """EOFError or OSError where the process died before it read the question: the socket of a dying process may
        still accept one."""
        if not self._connection.poll(_TAKEN_TIMEOUT_S):
            raise _NotTakenError(
                f"reward worker {self.pid} took no question for {_TAKEN_TIMEOUT_S:.0f} s; is it stopped?"
            )
        reply = self._connection.recv()
        if not isinstance(reply, Taken):
            raise RewardError(f"a reward worker answered {reply!r} before it had taken the question")

    def _spawn(self) -> None:
        with self._lock:
            if self._stopped:
                return
            self._ready = False
            ours, theirs = multiprocessing.Pipe()
            _limit_waits(ours.fileno())
            self._connection: Connection[Any, Any] = ours
            life_read, life_write = os.pipe()
            self._life_write = life_write
            data_fd = theirs.fileno()
            bootstrap = ["-X", "faulthandler", "-c", _BOOTSTRAP, json.dumps(sys.path), str(data_fd), str(life_read)]
            verifier = self._config.verifier
            named = verifier.environment if isinstance(verifier, FunctionReward) else ()
            try:
                # A session of its own: Ctrl-C reaches the parent only, and the whole group can be killed at once.
                self._process = subprocess.Popen(
                    [sys.executable, *bootstrap],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR_FD,  # what a user function prints must not mix with the command's own output
                    pass_fds=(data_fd, life_read),
                    start_new_session=True,
                    env=worker_environment(os.environ, named=named),
                )
            finally:
                theirs.close()
                os.close(life_read)
        with contextlib.suppress(OSError):  # dead already: wait_ready tells
            self._connection.send((self._config, self._data))

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

    def _describe_exit(self, code: int) -> str:
        if code == OUT_OF_MEMORY_EXIT:
            return f"died of memory: it wanted more than reward.memory_gib = {self._config.memory_gib:g}"
        return f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"died with exit code {code}"


def _limit_waits(fd: int) -> None:
    """A stopped process neither empties nor fills its socket: writes and reads give up with an OSError."""
    limit = struct.pack("ll", int(_TAKEN_TIMEOUT_S), 0)
    with socket.socket(fileno=os.dup(fd)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
