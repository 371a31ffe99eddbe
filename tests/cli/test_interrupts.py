"""Signals in every state of a run, in processes of their own that do what a run does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, os, sys, time
from megarl.cli import interrupts as module
from megarl.controller.stopping import StopRequest
from megarl.runtime.closing import undisturbed

mode = sys.argv[1]
module._HELD_UP_S, module.CLOSE_LIMIT_S = 1.0, float(sys.argv[2])

def kill(why):
    print("killed:", why, flush=True)
    os._exit(130)

async def close():
    await asyncio.sleep(4.0)
    print("closed", flush=True)

async def work():
    try:
        if mode in ("steps", "steps that save"):
            stop.listen(saves=mode == "steps that save")
        print("working", flush=True)
        if mode == "blocked":
            time.sleep(60)
        while stop.reason is None or endless:
            await asyncio.sleep(0.05)
        print("stopped for", stop.reason, flush=True)
    finally:
        await undisturbed(close())

endless = sys.argv[3] != "60.0"
stop = StopRequest()
heard = module.Interrupts(kill=kill, stop=stop, stop_within_s=float(sys.argv[3]))
with heard.heard():
    try:
        if mode == "before":
            print("working", flush=True)
            time.sleep(60)
        asyncio.run(heard.cancellable(work()))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("interrupted", flush=True)
        if mode == "after":
            time.sleep(3)
print("over", flush=True)
"""


class Run:
    def __init__(self, mode: str, close_limit_s: float = 60.0, stop_within_s: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, mode, str(close_limit_s), str(stop_within_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "working\n"

    def signal(self, number: signal.Signals, *, times: int = 1) -> None:
        for _ in range(times):
            self.process.send_signal(number)
            time.sleep(0.3)

    def end(self) -> list[str]:
        out, _ = self.process.communicate(timeout=30)
        assert "Traceback" not in out, out
        return out.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("mode", ["waiting", "blocked"])
def test_one_signal_closes_and_ends(mode: str, number: signal.Signals) -> None:
    """Also where the event loop is held up by a call that does not return."""
    run = Run(mode)
    run.signal(number)
    assert run.end() == ["closed", "interrupted", "over"]


def test_a_signal_before_there_is_a_loop() -> None:
    run = Run("before")
    run.signal(signal.SIGTERM)
    assert run.end() == ["interrupted", "over"]


def test_a_second_signal_explains_and_does_not_cut_the_closing_short() -> None:
    run = Run("waiting")
    run.signal(signal.SIGTERM, times=2)
    lines = run.end()
    assert [line for line in lines if line.startswith("stopping: workers are being ended, for 60 s at most")]
    assert lines[-3:] == ["closed", "interrupted", "over"]


def test_a_third_signal_kills() -> None:
    run = Run("waiting")
    run.signal(signal.SIGINT, times=3)
    assert run.end()[-1] == "killed: stopped by a third signal"
    assert run.process.returncode == 130


def test_closing_has_a_limit() -> None:
    run = Run("waiting", close_limit_s=1.0)
    run.signal(signal.SIGTERM)
    assert run.end() == ["killed: stopped by a signal; what ends the workers was not done within 1 s"]
    assert run.process.returncode == 130


SAYS = "the run finishes its step, saves and stops, within 60 s (checkpoint.stop_within_s); once more stops it at once"


@pytest.mark.parametrize(
    ("mode", "number"),
    [("steps", signal.SIGUSR1), ("steps that save", signal.SIGUSR1), ("steps that save", signal.SIGTERM)],
)
def test_a_run_with_steps_is_asked_to_stop_after_one(mode: str, number: signal.Signals) -> None:
    run = Run(mode)
    run.signal(number)
    assert run.end() == ["", f"{number.name}: {SAYS}", f"stopped for {number.name}", "closed", "over"]


@pytest.mark.parametrize(
    ("mode", "number"),
    [("steps", signal.SIGTERM), ("steps", signal.SIGINT), ("steps that save", signal.SIGINT)],
)
def test_a_run_that_saves_nothing_and_ctrl_c_stop_at_once(mode: str, number: signal.Signals) -> None:
    run = Run(mode)
    run.signal(number)
    assert run.end() == ["closed", "interrupted", "over"]


def test_asked_twice_a_run_stops_at_once() -> None:
    run = Run("steps that save", stop_within_s=59.0)
    run.signal(signal.SIGTERM, times=2)
    assert run.end()[2:] == ["closed", "interrupted", "over"]


def test_finishing_a_step_has_a_limit() -> None:
    run = Run("steps", stop_within_s=1.0)
    run.signal(signal.SIGUSR1)
    assert run.end()[2:] == [
        *("", "not done within 1 s (checkpoint.stop_within_s): stopping at once", "closed", "interrupted", "over")
    ]
