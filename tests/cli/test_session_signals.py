"""Signals in the frame of a run, where what it would write to cannot be written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from megarl.telemetry.run_directory import RunDirectory

SCRIPT = """
import asyncio, sys
from pathlib import Path
from megarl.cli.session import run_session
from megarl.telemetry.columns import SFT_COLUMNS
from tests.telemetry.runs import make_config

parent, close_s, full, late = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "full", sys.argv[3] == "late"

async def work(session):
    if late:
        session.stop.listen(saves=True)
    print("working", flush=True)
    try:
        async with session.heart.explaining():
            await asyncio.sleep(60)
    finally:
        if full:  # as where the disk has no room: state.json cannot be replaced
            session.directory.state_path.unlink()
            session.directory.state_path.mkdir()
        await asyncio.sleep(close_s)
        (parent / "closed").touch()

source = parent / "run.toml"
source.write_text("")
saving = {"checkpoint": {"stop_within_s": 1.0}} if late else {}
config = make_config(parent, logging={"directory": str(parent / "runs")}, **saving)
sys.exit(run_session(config, work, sources=[source], verb="train", steps=1, columns=SFT_COLUMNS))
"""


def start(parent: Path, *, close_s: float, disk: str = "") -> subprocess.Popen[str]:
    """A run that works."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(parent), str(close_s), disk],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(parent)},
    )
    assert process.stdout is not None
    while "working" not in process.stdout.readline():
        assert process.poll() is None
    return process


def interrupt(process: subprocess.Popen[str], times: int) -> None:
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)


def test_a_third_signal_ends_a_run_whose_state_cannot_be_written(tmp_path: Path) -> None:
    process = start(tmp_path, close_s=60.0, disk="full")
    interrupt(process, 3)
    _, said = process.communicate(timeout=45)
    assert process.returncode == 130, said
    assert "interrupted: stopped by a third signal; state.json keeps its last state: " in said
    assert "Traceback" not in said


def test_a_second_signal_that_nobody_reads_of_does_not_cut_the_closing_short(tmp_path: Path) -> None:
    """A Ctrl-C ends the `tee` behind stderr as well."""
    process = start(tmp_path, close_s=3.0)
    assert process.stderr is not None
    process.stderr.close()
    interrupt(process, 2)
    assert process.wait(45) == 130
    assert (tmp_path / "closed").exists()
    state = RunDirectory.open(tmp_path / "runs" / "latest").read_state()
    assert (state.status, state.message) == ("interrupted", "stopped by a signal")


def test_a_stop_that_is_not_done_in_time_says_where_everybody_was(tmp_path: Path) -> None:
    process = start(tmp_path, close_s=0.0, disk="late")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=45)
    assert process.returncode == 130
    assert "not done within 1 s (checkpoint.stop_within_s): stopping at once" in said
    run = RunDirectory.open(tmp_path / "runs" / "latest")
    state = run.read_state()
    (file,) = run.logs.glob("stacks-*.txt")
    assert state.message is not None
    assert state.message.startswith("stopped by a signal\nPhases of all processes: controller 0: ")
    assert state.message.endswith(f"\nTheir stacks: {file}")
