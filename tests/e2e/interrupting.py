"""A training that goes on until it is stopped, and what must hold when it was."""

import os
import signal
import time
from pathlib import Path

import psutil

from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.sinks import read_metrics
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl

START_TIMEOUT_S = 400
END_TIMEOUT_S = 90
ENDLESS = "train.steps=1000000"


def start_training(cwd: Path, model: Path, *overrides: str) -> Megarl:
    """A training that does not end by itself."""
    return Megarl("train", write_tiny_config(cwd, model), ENDLESS, *overrides, cwd=cwd)


def wait_for_steps(run: Megarl, steps: int = 2) -> None:
    metrics = run.cwd / "runs" / "latest" / "metrics.jsonl"
    run.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= steps, START_TIMEOUT_S)


def check_readable(run: Megarl) -> None:
    """Every finished step is whole, and the state counts them."""
    rows = read_metrics(run.directory.metrics_path)
    state = run.directory.read_state()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert state.step == len(rows)
    assert state.progress["step"] == len(rows)
    assert state.progress["owners"]["sampler"]["num_drawn"] == 4 * len(rows)
    assert len(read_rollouts(run.directory.rollouts_path(len(rows)))) == 16
    assert run.directory.report_path.exists()


def interrupt(run: Megarl, number: signal.Signals) -> None:
    """It ends in time and in order, is readable, and leaves nothing behind."""
    run.send_signal(number)
    time.sleep(0.5)
    run.send_signal(number)  # an impatient second one changes nothing
    assert run.wait(END_TIMEOUT_S) == 130
    assert run.leftovers() == []
    state = run.directory.read_state()
    assert (state.status, state.message) == ("interrupted", "stopped by a signal")
    check_readable(run)
    assert "interrupted: stopped by a signal" in run.text
    assert "Traceback" not in run.text


def holder_of(run: Megarl, log: str) -> psutil.Process:
    """The process whose standard output is the log of that name."""
    for process in run.find("ray::PolicyActor"):
        if os.path.basename(os.readlink(f"/proc/{process.pid}/fd/1")) == log:
            return process
    raise AssertionError(f"no process writes {log}")
