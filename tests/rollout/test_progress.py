"""When an engine counts as stuck: by its requests' tokens, and by real processes that are stopped."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megarl.rollout import progress as module
from megarl.rollout.processes import ChildProcesses
from megarl.rollout.progress import EngineProgress


class Requests:
    """What `AsyncLLM.output_processor` holds: a state per request under way, with the tokens that came for it."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def set(self, **tokens: int) -> None:
        def state(count: int) -> Any:
            return SimpleNamespace(detokenizer=SimpleNamespace(num_output_tokens=lambda: count))

        self.request_states = {name: state(count) for name, count in tokens.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def look(progress: EngineProgress, clock: Any, seconds: float) -> str | None:
    """Once a second for so long."""
    reason = None
    for _ in range(int(seconds)):
        clock.s += 1.0
        reason = progress.why_stuck()
    return reason


def make(processes: ChildProcesses | None = None) -> tuple[EngineProgress, Requests]:
    requests = Requests()
    llm: Any = SimpleNamespace(output_processor=requests)
    return EngineProgress(llm, processes or ChildProcesses(), stall_timeout_s=5.0), requests


def test_tokens_that_cease_to_come(clock: Any) -> None:
    progress, requests = make()
    requests.set(a=3, b=0)
    assert look(progress, clock, 5) is None
    requests.set(a=3, b=1)  # one token of one request is enough
    assert look(progress, clock, 5) is None
    requests.set(b=1)  # one has ended
    assert look(progress, clock, 5) is None
    reason = look(progress, clock, 1)
    assert reason is not None
    assert "it sampled no token for 5 s (rollout.stall_timeout_s) with 1 requests waiting" in reason


def test_an_idle_engine_is_not_stuck(clock: Any) -> None:
    progress, requests = make()
    assert look(progress, clock, 100) is None
    requests.set(a=0)
    assert look(progress, clock, 5) is None  # its time begins with the request


def test_time_in_which_nobody_looked_does_not_count(clock: Any) -> None:
    """This process was stopped itself, or the machine slept."""
    progress, requests = make()
    requests.set(a=3)
    assert look(progress, clock, 2) is None
    clock.s += 3600
    assert progress.why_stuck() is None
    for _ in range(1000):  # and asking often is no more than asking once
        assert progress.why_stuck() is None


def test_a_stopped_process_is_named_and_one_that_goes_on_is_not(clock: Any) -> None:
    processes = ChildProcesses()
    child = subprocess.Popen(["sleep", "600"])
    try:
        processes.find()
        progress, _ = make(processes)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert processes.find_stopped() == [f"process {child.pid} (sleep)"]
        assert look(progress, clock, 4) is None
        os.kill(child.pid, signal.SIGCONT)
        os.waitpid(child.pid, os.WCONTINUED)
        assert look(progress, clock, 4) is None
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        reason = look(progress, clock, 5)
        assert reason == f"process {child.pid} (sleep) of it has been stopped (by SIGSTOP) for 5 s {module._FIELD}"
        processes.end(0.0)
        assert not Path(f"/proc/{child.pid}").exists()
    finally:
        child.kill()
        child.wait()
